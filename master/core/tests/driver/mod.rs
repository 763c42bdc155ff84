//! A metadata state machine, driven by hand.

use common::wire::chunk_master::Register;
use common::wire::client_master::{MasterReply, Mutation, Owner};
use common::*;
use master_core::{Command, Entry, Metadata, Reply};

/// Metadata, and the log that made it.
pub struct Driver {
    pub state: Metadata,
    pub log: Vec<Entry>,
    /// By which the log's clock is ahead, in nanoseconds.
    pub ahead_ns: u64,
    seq: u64,
    salt: u64,
}

impl Driver {
    pub fn new() -> Driver {
        Driver { state: Metadata::new(), log: vec![], ahead_ns: 0, seq: 0, salt: 1 }
    }

    pub fn apply(&mut self, command: Command) -> Reply {
        self.salt = self.salt.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let stamp_ns = self.log.len() as u64 * 1000 + self.ahead_ns;
        let entry = Entry { stamp_ns, wall_ns: 5, salt: self.salt, command };
        self.log.push(entry.clone());
        self.state.apply(&entry)
    }

    pub fn mutate(&mut self, mutation: Mutation) -> MasterReply {
        self.seq += 1;
        let request = RequestId { client: ClientId(1), seq: self.seq };
        match self.apply(Command::Mutate { request, lowest: self.seq, mutation }) {
            Reply::Master(reply) => reply,
            Reply::Store(_) => unreachable!(),
        }
    }

    /// The state as it is read back from its image.
    pub fn reread(&self) -> Metadata {
        let read = Metadata::decode(image(&self.state).iter().map(|part| &part[..])).expect("it decodes");
        read.check();
        read
    }

    pub fn servers(&mut self, racks: &[&str], used: impl Fn(usize) -> u64) {
        for (n, rack) in racks.iter().enumerate() {
            self.apply(Command::Register(register(n, rack, used(n))));
        }
    }
}

/// The parts of a state's image.
pub fn image(state: &Metadata) -> Vec<Vec<u8>> {
    let mut parts = vec![];
    let Ok::<_, std::convert::Infallible>(()) = state.encode(|part| {
        parts.push(part);
        Ok(())
    });
    parts
}

pub const CAPACITY: u64 = 1 << 40;

pub fn register(n: usize, rack: &str, used: u64) -> Register {
    Register {
        store: None,
        uuid: n as u128 + 1,
        server_uuid: n as u128 + 1,
        incarnation: 1,
        boot_id: 1,
        dev_ino: (1, n as u64),
        rack: rack.into(),
        addr: ([127, 0, 0, 1], 1000 + n as u16).into(),
        capacity: CAPACITY,
        used,
    }
}

pub fn create(path: &str, chunk: bool) -> Mutation {
    Mutation::Create {
        path: path.into(),
        mode: 0o644,
        owner: Owner::default(),
        exclusive: true,
        parents: true,
        chunk,
        near: String::new(),
    }
}

pub fn code(reply: &MasterReply) -> Option<Code> {
    match reply {
        MasterReply::Refused { code, .. } => Some(*code),
        _ => None,
    }
}
