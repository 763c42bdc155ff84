//! Runs a plan, and finds a smaller one that fails as well.

use crate::world::World;
use crate::world::plan::Plan;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// What a run that kept all promises came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Writes that were acknowledged, and found.
    pub acked: u64,
    /// Reads on the way that gave what they must.
    pub reads: u64,
    /// Reads of these that took the bytes off a store's disk themselves.
    pub here: u64,
    /// Attempts to make a replica.
    pub repairs: u64,
    /// Chunks that were lost, beyond the fault model, and said to be.
    pub lost: u64,
    /// Bytes that lay scattered and were gathered, in the last lives of the stores' processes.
    pub gathered: u64,
    /// Chunks that began as clones of others.
    pub clones: u64,
    /// Virtual milliseconds.
    pub ms: u64,
}

impl std::ops::Add for Done {
    type Output = Done;
    fn add(self, more: Done) -> Done {
        Done {
            acked: self.acked + more.acked,
            reads: self.reads + more.reads,
            here: self.here + more.here,
            repairs: self.repairs + more.repairs,
            lost: self.lost + more.lost,
            gathered: self.gathered + more.gathered,
            clones: self.clones + more.clones,
            ms: self.ms + more.ms,
        }
    }
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub what: String,
    /// What happened before.
    pub trace: Vec<String>,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// In runs a panic is an outcome: it is kept, not printed.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo| match QUIET.get() {
            true => SAID.with(|said| *said.borrow_mut() = info.to_string()),
            false => before(info),
        }));
    });
}

/// Does some work; a panic in it is an outcome, and not printed.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    keep_panics();
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    outcome.map_err(|_| SAID.with(|said| std::mem::take(&mut *said.borrow_mut())))
}

/// Runs a plan: to the end, and once more after everything was killed there.
pub fn run(plan: &Plan) -> Result<Done, Failure> {
    let mut world = None;
    let outcome = quietly(|| {
        let world = world.insert(World::new(plan.clone()));
        world.run();
        world.check_promises();
        world.check_snapshots();
        world.check_clones();
        let lost = world.chunks_lost;
        let gathered = world.gathered_bytes();
        world.kill_all();
        world.check_promises();
        world.check_snapshots();
        world.check_clones();
        world.delete_snapshots();
        world.write_to_clones();
        Done {
            acked: world.acked.len() as u64,
            reads: world.reads_done,
            here: world.reads_here,
            repairs: world.repairs_begun,
            lost,
            gathered,
            clones: world.clones_made,
            ms: world.ms(),
        }
    });
    outcome.map_err(|what| Failure { what, trace: world.map(|w| w.trace).unwrap_or_default() })
}

/// Takes out of a failing plan what it does not need to fail: faults, one after another, and writes.
pub fn shrink(plan: &Plan) -> Plan {
    let mut small = plan.clone();
    loop {
        let before = small.clone();
        for n in (0..small.faults.len()).rev() {
            let mut less = small.clone();
            less.faults.remove(n);
            if run(&less).is_err() {
                small = less;
            }
        }
        while small.options.writes > 1 {
            let mut less = small.clone();
            less.options.writes /= 2;
            if run(&less).is_ok() {
                break;
            }
            small = less;
        }
        if small == before {
            return small;
        }
    }
}
