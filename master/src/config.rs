//! The master's configuration: a TOML file, every field checked.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The configuration of a master.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of this master: 1 or more, unique in the cluster, never reused with an empty disk.
    pub id: u64,
    /// The cluster: 16 hexadecimal digits, the same on all masters.
    pub cluster: String,
    /// Address to listen on, and that others are told: "host:port".
    pub listen: String,
    /// Where log and snapshot lie.
    pub dir: PathBuf,
    /// The masters of a new cluster: id and address of each, this one among them. Empty for a
    /// master that is added to a running cluster.
    #[serde(default)]
    pub initial: Vec<Member>,
    /// Stretches all timeouts together, on slow machines.
    #[serde(default = "one")]
    pub time_scale: u64,
}

/// A master of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its address.
    pub addr: String,
}

fn one() -> u64 {
    1
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
        if self.id == 0 {
            return Some("id: 1 or more".into());
        }
        if u64::from_str_radix(&self.cluster, 16).is_err() || self.cluster.len() != 16 {
            return Some("cluster: 16 hexadecimal digits".into());
        }
        if !self.initial.is_empty() && !self.initial.iter().any(|m| m.id == self.id && m.addr == self.listen)
        {
            return Some("initial: this master (id and listen) must be among the masters".into());
        }
        if !(1..=100).contains(&self.time_scale) {
            return Some("time_scale: 1-100".into());
        }
        None
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> common::ClusterId {
        common::ClusterId(u64::from_str_radix(&self.cluster, 16).expect("checked"))
    }
}
