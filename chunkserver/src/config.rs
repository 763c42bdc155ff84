//! The chunkserver's configuration: a TOML file, every field checked.

use common::limits::{
    CHUNK_BYTES_MAX, EXTENT_SEGMENT_BYTES, LOG_GROUP_BYTES_MAX, LOG_SEGMENT_BYTES, SCRUB_PERIOD_S,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// Which engine moves bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or do not start.
    Uring,
    /// A thread pool with pread and pwrite.
    Threads,
}

/// The configuration of a chunkserver.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses of masters; one that answers is enough to find the others.
    pub masters: Vec<String>,
    /// Data directories: one store each.
    pub data: Vec<PathBuf>,
    /// Failure domain.
    pub rack: String,
    /// Address on which the data ports listen, and which others are told.
    #[serde(default = "default_bind")]
    pub bind: IpAddr,
    /// First data port; 0 takes any. A second store takes the next.
    #[serde(default)]
    pub port: u16,
    /// Bytes that each store may use; 0: what the disk has.
    #[serde(default)]
    pub capacity_bytes: u64,
    /// Bytes of a segment of extents; fixed when a directory is made.
    #[serde(default = "default_segment")]
    pub segment_bytes: u64,
    /// Bytes of a segment of the log; fixed when a directory is made.
    #[serde(default = "default_log_segment")]
    pub log_segment_bytes: u64,
    /// Every byte is read and verified once in so many seconds.
    #[serde(default = "default_scrub")]
    pub scrub_period_s: u64,
    /// What moves bytes: "auto", "uring" or "threads".
    #[serde(default)]
    pub engine: EngineChoice,
}

fn default_bind() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

fn default_segment() -> u64 {
    EXTENT_SEGMENT_BYTES
}

fn default_scrub() -> u64 {
    SCRUB_PERIOD_S
}

fn default_log_segment() -> u64 {
    LOG_SEGMENT_BYTES
}

impl Config {
    /// The configuration in this text, or what is wrong with it, with its line.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        match config.invalid() {
            Some(why) => Err(why),
            None => Ok(config),
        }
    }

    /// Why it cannot be, if so.
    pub fn invalid(&self) -> Option<String> {
        let mib = 1024 * 1024;
        if self.masters.is_empty() {
            return Some("masters: give at least one master's address, as [\"host:port\"]".into());
        }
        if self.data.is_empty() {
            return Some("data: give at least one data directory".into());
        }
        if self.rack.is_empty() || self.rack.len() > 255 {
            return Some("rack: 1-255 bytes".into());
        }
        let segments = 16 * mib..=4096 * mib;
        if !segments.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(mib) {
            return Some("segment_bytes: a multiple of 1 MiB from 16 MiB to 4 GiB".into());
        }
        let log_min = 4 * (LOG_GROUP_BYTES_MAX as u64);
        if !(log_min..=1024 * mib).contains(&self.log_segment_bytes)
            || !self.log_segment_bytes.is_multiple_of(mib)
        {
            return Some(format!(
                "log_segment_bytes: a multiple of 1 MiB from {} MiB to 1 GiB",
                log_min / mib
            ));
        }
        if self.capacity_bytes > 0 && self.capacity_bytes < 2 * CHUNK_BYTES_MAX {
            return Some("capacity_bytes: 0, or at least 128 MiB".into());
        }
        None
    }
}
