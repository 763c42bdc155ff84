//! `mount.cairn`: what mount(8) calls for file systems of type `cairn`, so from fstab(5) and systemd too. A link of that
//! name to the binary is all that is installed.

use anyhow::{Context, bail};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The name by which it is called.
const NAME: &str = "mount.cairn";

/// Becomes `cairn mount`, if the process was called by the name of the helper.
pub fn run_if_called() -> anyhow::Result<()> {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    if Path::new(&called).file_name() != Some(OsStr::new(NAME)) {
        return Ok(());
    }
    match translate(words.collect())? {
        Some(words) => {
            let binary = std::env::current_exe().context("find the binary")?;
            Err(Command::new(binary).args(words).exec()).context("become `cairn mount`")
        }
        None => std::process::exit(0),
    }
}

/// The words of `cairn` for those of the helper: `SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type]`. SPEC is a
/// cluster, as `--cluster` has it, and perhaps a directory there, after a colon. Nothing is to be done with `-f`.
fn translate(words: Vec<OsString>) -> anyhow::Result<Option<Vec<OsString>>> {
    let mut words = words.into_iter();
    let (mut places, mut options) = (vec![], vec![]);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => {
                let list = words.next().context("-o wants options")?;
                options.extend(["-o".into(), list]);
            }
            Some("-t" | "-N") => drop(words.next()),
            Some("-f") => return Ok(None),
            Some("-s" | "-n" | "-v") => {}
            Some(other) if other.starts_with('-') => bail!("{NAME}: {other} is not known"),
            _ => places.push(word),
        }
    }
    let [spec, point] = places.try_into().ok().with_context(|| {
        format!("usage: {NAME} CLUSTER[:/DIRECTORY] MOUNT-POINT [-o OPTIONS], as mount(8) calls it")
    })?;
    let spec = spec.into_string().ok().context("the cluster's name is no UTF-8")?;
    let (cluster, root) = match spec.split_once(":/") {
        Some((cluster, root)) => (cluster.to_owned(), format!("/{root}")),
        None => (spec.clone(), "/".into()),
    };
    let mut all: Vec<OsString> =
        ["--cluster", &cluster, "mount", "--detach", "--root", &root].map(Into::into).into();
    all.extend(["--source".into(), spec.into()]);
    all.extend(options);
    all.push(point);
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(words: &[&str]) -> Option<Vec<String>> {
        let words = translate(words.iter().map(Into::into).collect()).unwrap()?;
        Some(words.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn the_cluster_and_its_directory_are_told_apart() {
        let of = |spec| translated(&[spec, "/mnt"]).unwrap();
        let head = |cluster, root| ["--cluster", cluster, "mount", "--detach", "--root", root];
        assert_eq!(of("a:1,b:2:/d/e")[..6], head("a:1,b:2", "/d/e"));
        assert_eq!(of("a:1,b:2")[..6], head("a:1,b:2", "/"));
        assert_eq!(of("/etc/cairn.toml:/d")[..6], head("/etc/cairn.toml", "/d"));
        assert_eq!(of("a:1")[6..], ["--source", "a:1", "/mnt"]);
        assert_eq!(
            translated(&["a:1", "/mnt", "-o", "ro", "-n", "-t", "cairn"]).unwrap()[8..],
            ["-o", "ro", "/mnt"]
        );
        assert_eq!(translated(&["a:1", "/mnt", "-f"]), None);
        for bad in [&["a:1"][..], &["a", "b", "c"], &["a", "b", "-q"], &["a", "b", "-o"]] {
            assert!(translate(bad.iter().map(Into::into).collect()).is_err(), "{bad:?}");
        }
    }
}
