//! Runs one seed of one cube and prints its trace: `memcube-simulations SEED`.
#![allow(clippy::print_stdout)]

fn main() -> anyhow::Result<()> {
    let given = std::env::args().nth(1);
    let seed: u64 = match given.as_deref().map(str::parse) {
        Some(Ok(seed)) => seed,
        Some(Err(_)) => {
            anyhow::bail!("the seed must be a whole number; try `memcube-simulations 7`")
        }
        None => 1,
    };
    let report = memcube_simulations::run_seed(seed)?;
    print!("{}", report.trace);
    println!(
        "seed {seed}: {} acknowledged, {} crashes, {} simulated ms, {} violations",
        report.acknowledged,
        report.crashes,
        report.simulated_ms,
        report.violations.len()
    );
    for violation in &report.violations {
        println!("  {violation}");
    }
    anyhow::ensure!(report.violations.is_empty(), "seed {seed} failed; run it again to replay");
    Ok(())
}
