//! x
/// x
pub fn run(_: impl std::io::BufRead, _: impl std::io::Write) -> anyhow::Result<()> { anyhow::bail!("x") }
