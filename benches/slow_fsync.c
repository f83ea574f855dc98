// Makes fsync and fdatasync take SLOW_FSYNC_MS longer, as a disk without a write cache would.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int slowly(const char *name, int fd) {
    const char *ms = getenv("SLOW_FSYNC_MS");
    struct timespec delay = {0, (ms ? atol(ms) : 2) * 1000000L};
    nanosleep(&delay, NULL);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }
