//! A cluster of real processes.

use client::Client;
use ops::cluster::{Cluster, Spec};
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

pub fn cairn() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cairn"))
}

pub struct Running {
    pub cluster: Cluster,
    pub runtime: tokio::runtime::Runtime,
    pub client: Client,
    _dir: TempDir,
}

impl Running {
    pub fn start(masters: u32, chunkservers: u32) -> Running {
        Running::start_with(masters, chunkservers, "")
    }

    /// With more lines in the chunkservers' configuration.
    pub fn start_with(masters: u32, chunkservers: u32, lines: &str) -> Running {
        let dir = TempDir::new().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut spec = Spec::small(masters, chunkservers);
        spec.chunkserver_extra += lines;
        let mut cluster = Cluster::open(&dir.path().join("c"), &spec, &cairn()).unwrap();
        cluster.start_all().unwrap();
        let client = runtime.block_on(cluster.healthy()).unwrap();
        Running { cluster, runtime, client, _dir: dir }
    }

    pub fn cairn<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Output {
        Command::new(cairn()).arg("--cluster").arg(self.cluster.dir()).args(args).output().unwrap()
    }

    pub fn ok<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Vec<u8> {
        let out = self.cairn(args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }
}
