//! `memcube sim`: hands over to `memcube-sim`.

use std::{
    env::{self, consts::EXE_SUFFIX},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Args;

const PROGRAM: &str = "memcube-sim";

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct SimArgs {
    /// Arguments of `memcube-sim`; try `memcube sim --help`.
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: &SimArgs) -> Result<ExitCode> {
    let this = env::current_exe().context("cannot find the folder of this program")?;
    let folder = this.parent().unwrap_or_else(|| Path::new(""));
    let program = find(folder, env::var_os("PATH").as_deref()).with_context(|| {
        format!(
            "`{PROGRAM}` is neither beside this program nor on the `PATH`: simulations are a \
             program of their own; build it with `cargo build --profile sim -p memcube-simulations`"
        )
    })?;
    let mut command = Command::new(&program);
    command.args(&args.args);
    hand_over(command).with_context(|| format!("cannot run `{}`", program.display()))
}

/// The program beside this one, or where cargo puts the profile `sim`, or on the path.
fn find(folder: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let near = [folder.to_owned(), folder.join("../sim")];
    let far = path.into_iter().flat_map(env::split_paths);
    let name = format!("{PROGRAM}{EXE_SUFFIX}");
    near.into_iter().chain(far).map(|folder| folder.join(&name)).find(|program| program.is_file())
}

/// Becomes the program. Returns only if that fails.
#[cfg(unix)]
fn hand_over(mut command: Command) -> Result<ExitCode> {
    Err(std::os::unix::process::CommandExt::exec(&mut command).into())
}

/// Runs the program, and ends as it ends.
#[cfg(not(unix))]
fn hand_over(mut command: Command) -> Result<ExitCode> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_nearest_program_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let make = |folder: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            let program = folder.join(format!("{PROGRAM}{EXE_SUFFIX}"));
            fs::write(&program, "").unwrap();
            program.canonicalize().unwrap()
        };
        let release = root.path().join("release");
        fs::create_dir_all(&release).unwrap();
        let path = env::join_paths([root.path().join("none"), root.path().join("bin")]).unwrap();
        let found = || Some(find(&release, Some(&path))?.canonicalize().unwrap());
        assert_eq!(found(), None);
        let installed = make("bin");
        assert_eq!(found(), Some(installed));
        let built = make("sim");
        assert_eq!(found(), Some(built));
        let beside = make("release");
        assert_eq!(found(), Some(beside));
        assert_eq!(find(&root.path().join("elsewhere"), None), None);
    }
}
