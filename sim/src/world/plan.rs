//! What a run is made of: who takes part, and what befalls whom and when. A run depends on its plan
//! and on nothing else.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Who takes part, and how much befalls them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Stores.
    pub stores: u32,
    /// Replicas of each chunk.
    pub replicas: u8,
    /// Chunks, over which the writers are spread in turn.
    pub chunks: u32,
    /// Writers.
    pub writers: u32,
    /// Writes of each.
    pub writes: u32,
    /// Whether records are appended, or ranges overwritten.
    pub append: bool,
    /// Whether writes are a few blocks long at most, so that chunks come to lie scattered.
    #[serde(default)]
    pub small: bool,
    /// Virtual milliseconds over which the faults, and the writes, are spread.
    pub span_ms: u64,
    /// Kills of a process.
    pub kills: u32,
    /// Whether most kills are losses of power.
    pub power: bool,
    /// Processes that stand still, some for longer than a session lasts.
    pub pauses: u32,
    /// One-way cuts between two stores.
    pub cuts: u32,
    /// Stores that are cut off from the masters.
    pub deafs: u32,
    /// Stores that are cut off from everybody but clients.
    pub islands: u32,
    /// Times in which the masters have no leader; then another one leads.
    pub elections: u32,
    /// Servers that are drained for a while.
    pub drains: u32,
    /// Checkpoints at any moment.
    pub checkpoints: u32,
    /// Snapshots of everything; then writers go from chunk to chunk.
    #[serde(default)]
    pub snapshots: u32,
    /// How often the oldest snapshot is deleted.
    #[serde(default)]
    pub deletions: u32,
    /// Clones of chunks.
    #[serde(default)]
    pub clones: u32,
    /// Truncations of files.
    #[serde(default)]
    pub truncations: u32,
    /// Files that are emptied while their chunk is open, perhaps.
    #[serde(default)]
    pub emptyings: u32,
    /// Whether answers of the masters may come seconds late.
    #[serde(default)]
    pub late_answers: bool,
    /// Whether what writers send may.
    #[serde(default)]
    pub late_writes: bool,
    /// Stores that are lost for good, and given up later. With as many of them as a chunk has replicas,
    /// chunks can be lost: then that must be said.
    #[serde(default)]
    pub losses: u32,
}

/// Something that befalls the world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Microseconds after the beginning.
    pub at_us: u64,
    /// What.
    pub what: What,
}

/// What befalls whom. Stores are numbered from 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// A process is killed, and started again.
    Kill {
        /// Whose.
        store: usize,
        /// Whether the machine loses its power.
        power: bool,
        /// Whether the masters are told at once; else the session has to lapse.
        told: bool,
        /// When it is back, in milliseconds.
        back_ms: u64,
    },
    /// A process stands still.
    Pause {
        /// Whose.
        store: usize,
        /// For so long.
        ms: u64,
    },
    /// Nothing of what one store says comes to another.
    Cut {
        /// Who speaks.
        from: usize,
        /// Who does not hear.
        to: usize,
        /// For so long.
        ms: u64,
        /// Whether the connection breaks; else what was said arrives in the end.
        breaks: bool,
    },
    /// A store and the masters do not hear each other.
    Deaf {
        /// Which.
        store: usize,
        /// For so long.
        ms: u64,
    },
    /// A store, the masters and all other stores do not hear each other. Clients reach it.
    Island {
        /// Which.
        store: usize,
        /// For so long.
        ms: u64,
        /// Whether its connections break.
        breaks: bool,
    },
    /// The masters have no leader; then another one, which has counted no session.
    Election {
        /// For so long.
        ms: u64,
    },
    /// A server is drained, and used again later.
    Drain {
        /// Which: each has one store.
        store: usize,
        /// For so long.
        ms: u64,
    },
    /// A store dies and never comes back; later it is given up.
    Lose {
        /// Which.
        store: usize,
        /// Whether the masters are told at once that it died.
        told: bool,
        /// When it is given up, in milliseconds.
        after_ms: u64,
    },
    /// A snapshot of everything is taken.
    Snapshot,
    /// The oldest snapshot is deleted.
    DeleteSnapshot,
    /// A chunk is cloned.
    Clone {
        /// Which, of those that the writers write to.
        chunk: usize,
    },
    /// The file of a chunk is cut.
    Truncate {
        /// Of which, of those that the writers write to.
        chunk: usize,
    },
    /// The file of a chunk is emptied.
    Empty {
        /// Of which, of those that the writers write to.
        chunk: usize,
    },
    /// A store makes a checkpoint.
    Checkpoint {
        /// Which.
        store: usize,
    },
}

/// All that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the scenario.
    pub scenario: String,
    /// Decides everything but the faults: delays, sizes, who reads where.
    pub seed: u64,
    /// Who takes part.
    pub options: Options,
    /// What befalls them, by time.
    pub faults: Vec<Fault>,
}

/// The scenarios, by name.
pub fn scenarios() -> Vec<(&'static str, Options)> {
    let calm = Options {
        stores: 4,
        replicas: 3,
        chunks: 1,
        writers: 3,
        writes: 20,
        append: true,
        small: false,
        span_ms: 200,
        kills: 0,
        power: false,
        pauses: 0,
        cuts: 0,
        deafs: 0,
        islands: 0,
        elections: 0,
        drains: 0,
        checkpoints: 2,
        snapshots: 0,
        deletions: 0,
        clones: 0,
        truncations: 0,
        emptyings: 0,
        late_answers: false,
        late_writes: false,
        losses: 0,
    };
    let repair = Options { stores: 5, writes: 40, span_ms: 800, kills: 8, checkpoints: 8, ..calm.clone() };
    let net = Options {
        span_ms: 3000,
        late_answers: true,
        late_writes: true,
        cuts: 3,
        deafs: 1,
        islands: 2,
        elections: 1,
        pauses: 2,
        drains: 1,
        ..repair.clone()
    };
    vec![
        ("appends", calm.clone()),
        ("overwrites", Options { append: false, ..calm.clone() }),
        ("appends-kills", Options { kills: 4, ..calm.clone() }),
        ("appends-power", Options { kills: 4, power: true, ..calm.clone() }),
        ("overwrites-power", Options { kills: 4, power: true, append: false, ..calm.clone() }),
        (
            "single-power",
            Options { stores: 1, replicas: 1, kills: 6, power: true, append: false, ..calm.clone() },
        ),
        ("repair-kills", repair.clone()),
        ("repair-power", Options { power: true, append: false, ..repair.clone() }),
        ("pauses", Options { kills: 1, pauses: 4, span_ms: 2000, ..repair.clone() }),
        ("cuts", Options { kills: 0, pauses: 0, ..net.clone() }),
        ("islands", Options { kills: 1, pauses: 0, cuts: 0, islands: 4, ..net.clone() }),
        ("net", Options { chunks: 2, kills: 3, ..net.clone() }),
        ("net-power", Options { chunks: 2, kills: 4, power: true, append: false, ..net.clone() }),
        ("births", Options { chunks: 8, writers: 8, writes: 4, kills: 6, power: true, ..calm.clone() }),
        // Chunks are lost by those that have just made them.
        (
            "cradles",
            Options {
                stores: 3,
                chunks: 12,
                writers: 36,
                writes: 2,
                span_ms: 60,
                kills: 12,
                power: true,
                checkpoints: 0,
                ..calm.clone()
            },
        ),
        (
            "long",
            Options {
                stores: 6,
                chunks: 3,
                writers: 4,
                writes: 100,
                span_ms: 10_000,
                kills: 8,
                power: true,
                pauses: 3,
                cuts: 6,
                deafs: 2,
                islands: 2,
                elections: 2,
                drains: 3,
                late_answers: true,
                late_writes: true,
                checkpoints: 12,
                ..calm.clone()
            },
        ),
        // A checkpoint is under way most of the time.
        (
            "checkpoints",
            Options {
                chunks: 3,
                writers: 12,
                writes: 40,
                append: false,
                span_ms: 400,
                kills: 12,
                power: true,
                checkpoints: 100,
                ..calm.clone()
            },
        ),
        ("snapshots", Options { chunks: 2, snapshots: 4, kills: 2, ..repair.clone() }),
        (
            "snapshots-power",
            Options { chunks: 2, snapshots: 4, kills: 6, power: true, append: false, ..net.clone() },
        ),
        ("clones", Options { chunks: 2, clones: 12, kills: 2, append: false, ..repair.clone() }),
        (
            "clones-power",
            Options {
                chunks: 2,
                clones: 20,
                snapshots: 2,
                kills: 6,
                power: true,
                append: false,
                ..net.clone()
            },
        ),
        (
            "scattered",
            Options {
                small: true,
                append: false,
                writes: 300,
                kills: 6,
                power: true,
                checkpoints: 60,
                clones: 2,
                ..repair.clone()
            },
        ),
        // Writers write on to what is cut under them.
        (
            "truncations",
            Options { chunks: 3, writers: 6, truncations: 12, append: false, kills: 4, ..repair.clone() },
        ),
        (
            "truncations-power",
            Options {
                chunks: 4,
                writers: 6,
                truncations: 16,
                snapshots: 6,
                deletions: 4,
                kills: 4,
                power: true,
                append: false,
                ..net.clone()
            },
        ),
        // And others clone what is cut, and what snapshots have of it.
        (
            "truncations-clones",
            Options {
                chunks: 3,
                writers: 6,
                truncations: 12,
                clones: 24,
                snapshots: 4,
                deletions: 3,
                late_answers: true,
                kills: 3,
                append: false,
                ..repair.clone()
            },
        ),
        // Nobody seals what is taken away.
        (
            "emptyings",
            Options { chunks: 6, writers: 12, emptyings: 6, kills: 4, span_ms: 400, ..repair.clone() },
        ),
        (
            "emptyings-power",
            Options {
                chunks: 6,
                writers: 9,
                emptyings: 5,
                truncations: 4,
                clones: 8,
                snapshots: 3,
                deletions: 2,
                kills: 4,
                power: true,
                append: false,
                ..net.clone()
            },
        ),
        // Chunks never have less than two live members: nothing is lost with one.
        ("loss", Options { chunks: 2, kills: 4, losses: 1, ..net.clone() }),
        // Beyond the fault model.
        (
            "beyond",
            Options { stores: 7, chunks: 4, writers: 4, kills: 3, losses: 4, power: true, ..net.clone() },
        ),
    ]
}

impl Plan {
    /// The plan of a scenario and a seed.
    pub fn new(scenario: &str, options: Options, seed: u64) -> Plan {
        // Not the run's own chance: a fault that is taken out of a plan changes no other.
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed_fa17);
        let mut faults = vec![];
        let stores = options.stores as usize;
        let mut add = |count: u32, what: &dyn Fn(&mut StdRng) -> What| {
            for _ in 0..count {
                let at_us = rng.random_range(1000..options.span_ms * 1000);
                let what = what(&mut rng);
                faults.push(Fault { at_us, what });
            }
        };
        let power = options.power;
        add(options.kills, &|rng| What::Kill {
            store: rng.random_range(0..stores),
            power: power && rng.random_bool(0.7),
            told: rng.random_bool(0.9),
            back_ms: rng.random_range(1..150),
        });
        add(options.pauses, &|rng| What::Pause {
            store: rng.random_range(0..stores),
            ms: if rng.random() { rng.random_range(20..600) } else { rng.random_range(600..4000) },
        });
        if stores > 1 {
            add(options.cuts, &|rng| {
                let from = rng.random_range(0..stores);
                let to = (from + rng.random_range(1..stores)) % stores;
                What::Cut { from, to, ms: rng.random_range(10..3000), breaks: rng.random() }
            });
        }
        add(options.deafs, &|rng| What::Deaf {
            store: rng.random_range(0..stores),
            ms: rng.random_range(100..4000),
        });
        if stores > 1 {
            add(options.islands, &|rng| What::Island {
                store: rng.random_range(0..stores),
                ms: rng.random_range(600..4000),
                breaks: rng.random(),
            });
        }
        add(options.elections, &|rng| What::Election { ms: rng.random_range(50..1200) });
        if stores > 1 {
            add(options.drains, &|rng| What::Drain {
                store: rng.random_range(0..stores),
                ms: rng.random_range(500..4000),
            });
        }
        add(options.losses, &|rng| What::Lose {
            store: rng.random_range(0..stores),
            told: rng.random(),
            after_ms: rng.random_range(0..3000),
        });
        add(options.snapshots, &|_| What::Snapshot);
        add(options.deletions, &|_| What::DeleteSnapshot);
        add(options.clones, &|rng| What::Clone { chunk: rng.random_range(0..options.chunks as usize) });
        add(options.truncations, &|rng| What::Truncate {
            chunk: rng.random_range(0..options.chunks as usize),
        });
        add(options.checkpoints, &|rng| What::Checkpoint { store: rng.random_range(0..stores) });
        add(options.emptyings, &|rng| What::Empty { chunk: rng.random_range(0..options.chunks as usize) });
        // Two cut the same file.
        for n in 0..faults.len() {
            let What::Truncate { chunk } = faults[n].what else { continue };
            if rng.random_bool(0.3) {
                let at_us = faults[n].at_us + rng.random_range(0..2000);
                faults.push(Fault { at_us, what: What::Truncate { chunk } });
            }
        }
        // What a checkpoint leaves half done is found when it is killed.
        for n in 0..faults.len() {
            let What::Checkpoint { store } = faults[n].what else { continue };
            if options.kills > 0 && rng.random_bool(0.3) {
                let at_us = faults[n].at_us + rng.random_range(0..8000);
                let power = power && rng.random_bool(0.9);
                faults.push(Fault { at_us, what: What::Kill { store, power, told: true, back_ms: 20 } });
            }
        }
        // Who has just come back falls again, or makes a checkpoint while it has everything to read.
        for n in 0..faults.len() {
            let What::Kill { store, power, back_ms, .. } = faults[n].what else { continue };
            let back_us = faults[n].at_us + back_ms * 1000;
            if rng.random_bool(0.2) {
                let at_us = back_us + rng.random_range(1..200_000);
                faults.push(Fault { at_us, what: What::Kill { store, power, told: true, back_ms: 20 } });
            }
            if options.checkpoints > 0 && rng.random_bool(0.3) {
                let at_us = back_us + rng.random_range(1..60_000);
                faults.push(Fault { at_us, what: What::Checkpoint { store } });
            }
        }
        faults.sort_by_key(|f| f.at_us);
        Plan { scenario: scenario.into(), seed, options, faults }
    }

    /// Why this cannot be run, if so: a plan may come from a file.
    pub fn check(&self) -> Result<(), String> {
        let o = &self.options;
        let stores = o.stores as usize;
        if !(1..=64).contains(&o.stores) || !(1..=64).contains(&o.chunks) || o.writers > 64 {
            return Err("1 to 64 stores and chunks, and at most 64 writers".into());
        }
        if o.replicas == 0 || o.replicas as u32 > o.stores.min(common::limits::REPLICATION_MAX as u32) {
            return Err("replicas: at least 1, at most as many as there are stores, and 5".into());
        }
        let lost = |f: &Fault| if let What::Lose { store, .. } = f.what { Some(store) } else { None };
        let lost: BTreeSet<usize> = self.faults.iter().filter_map(lost).collect();
        if stores.saturating_sub(lost.len()) < o.replicas as usize {
            return Err("so many stores must stay as a chunk has replicas".into());
        }
        for fault in &self.faults {
            let there = match &fault.what {
                What::Kill { store, .. }
                | What::Pause { store, .. }
                | What::Deaf { store, .. }
                | What::Drain { store, .. }
                | What::Island { store, .. }
                | What::Lose { store, .. }
                | What::Checkpoint { store } => *store < stores,
                What::Cut { from, to, .. } => *from < stores && *to < stores && from != to,
                What::Election { .. }
                | What::Snapshot
                | What::DeleteSnapshot
                | What::Clone { .. }
                | What::Truncate { .. }
                | What::Empty { .. } => true,
            };
            if !there {
                return Err(format!("there is no such store: {:?}", fault.what));
            }
        }
        Ok(())
    }
}
