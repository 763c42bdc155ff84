//! The JSON-lines node (`cairn node`): a line is an input, an output is a line. It speaks the
//! protocol of the two task descriptions it was made for, and between nodes carries the chunk
//! protocol's own messages. No decisions are made here: they are the cores'.
//!
//! The network between nodes may lose and delay lines (Maelstrom does both), the cores expect
//! connections: so lines between nodes are numbered, acknowledged and sent again, in order, and
//! a node that acknowledges nothing for a while counts as lost.

use crate::disk::MemDisk;
use crate::world::{empty_disk, open, small_store};
use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{Input, Output};
use common::limits::{CHUNK_CLIENT_WINDOW, CHUNK_LEASE_MS, PIECE_BYTES_MAX, WRITE_BYTES_MAX};
use common::wire::chunk_chunk::Peer;
use common::wire::chunk_master::{Register, StoreReply};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{MasterReply, Mutation, Owner};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, ClientId, Code, Epoch, Refusal, RequestId, SessionId, StoreId, Time};
use master_core::{Command, Entry, Metadata, Reply};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A line between nodes that is not acknowledged is sent again after this.
const RESEND: Duration = Duration::from_millis(100);
/// A node that acknowledges nothing for so long counts as lost.
const LOST: Duration = Duration::from_millis(1500);
/// A client's request is answered within this, if with an error.
const ANSWER: Duration = Duration::from_millis(4000);
/// Longest line that is read.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Error codes of Maelstrom's protocol.
const TIMEOUT: u16 = 0;
const NOT_SUPPORTED: u16 = 10;
const UNAVAILABLE: u16 = 11;
const MALFORMED: u16 = 12;

/// One direction of a connection to another node.
#[derive(Default)]
struct Link {
    next: u64,
    /// Not acknowledged: number, line, when last sent.
    unacked: VecDeque<(u64, Value)>,
    sent: Option<Instant>,
    heard: Option<Instant>,
    lost: bool,
    /// Received up to here; what came early waits.
    received: u64,
    early: BTreeMap<u64, Value>,
}

/// A client's write on its way.
struct Pushing {
    src: String,
    msg_id: Value,
    primary: StoreId,
    msg: ClientChunk,
    pieces_left: usize,
    members: u8,
    until: Instant,
}

/// A node.
struct JsonNode<W> {
    out: W,
    name: String,
    names: Vec<String>,
    next_msg: u64,
    node: Option<Node>,
    disk: MemDisk,
    master: Metadata,
    allocations: BTreeMap<(String, u64), Value>,
    links: BTreeMap<String, Link>,
    writes: BTreeMap<u64, Pushing>,
    next_write: u64,
    began: Instant,
}

/// Reads lines until the input ends.
pub fn run(input: impl BufRead + Send, output: impl Write) -> anyhow::Result<()> {
    let (send, lines) = mpsc::channel::<String>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut input = input;
            let mut line = vec![];
            loop {
                line.clear();
                let mut limited = std::io::Read::take(&mut input, LINE_BYTES_MAX as u64);
                match limited.read_until(b'\n', &mut line) {
                    Ok(n) if n > 0 => {
                        if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
        let mut node = JsonNode::new(output);
        loop {
            match lines.recv_timeout(Duration::from_millis(5)) {
                Ok(line) => node.line(&line)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
            node.tick()?;
        }
    })
}

impl<W: Write> JsonNode<W> {
    fn new(out: W) -> JsonNode<W> {
        JsonNode {
            out,
            name: String::new(),
            names: vec![],
            next_msg: 0,
            node: None,
            disk: MemDisk::default(),
            master: Metadata::new(),
            allocations: BTreeMap::new(),
            links: BTreeMap::new(),
            writes: BTreeMap::new(),
            next_write: 1,
            began: Instant::now(),
        }
    }

    fn say(&mut self, dest: &str, mut body: Value) -> anyhow::Result<()> {
        if body.get("in_reply_to").is_some() {
            body["msg_id"] = json!(self.next_msg);
            self.next_msg += 1;
        }
        let (src, dest, body) = (json!(self.name), json!(dest), spaced(&body));
        writeln!(self.out, "{{\"src\": {src}, \"dest\": {dest}, \"body\": {body}}}")?;
        self.out.flush()?;
        Ok(())
    }

    fn error(&mut self, dest: &str, msg_id: &Value, code: u16, text: &str) -> anyhow::Result<()> {
        self.say(dest, json!({"type": "error", "in_reply_to": msg_id, "code": code, "text": text}))
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            eprintln!("cairn node: not a line of JSON, left out");
            return Ok(());
        };
        let src = message["src"].as_str().unwrap_or_default().to_owned();
        let body = message["body"].clone();
        let msg_id = body["msg_id"].clone();
        match body["type"].as_str() {
            Some("init") => self.init(&src, &body, &msg_id),
            _ if self.node.is_none() => self.error(&src, &msg_id, UNAVAILABLE, "not initialised"),
            Some("allocate_chunk") => self.allocate_asked(&src, body, &msg_id),
            Some("chunk_write") => self.chunk_write(&src, &body, &msg_id),
            Some("cairn") => self.link_line(&src, &body),
            Some("cairn_ack") => self.link_ack(&src, &body),
            _ => self.error(&src, &msg_id, NOT_SUPPORTED, "unknown type"),
        }
    }

    fn init(&mut self, src: &str, body: &Value, msg_id: &Value) -> anyhow::Result<()> {
        let name = body["node_id"].as_str().map(str::to_owned);
        let names: Option<Vec<String>> = body["node_ids"]
            .as_array()
            .map(|ids| ids.iter().filter_map(|i| i.as_str().map(str::to_owned)).collect());
        let (Some(name), Some(names)) = (name, names) else {
            return self.error(src, msg_id, MALFORMED, "init needs node_id and node_ids");
        };
        let Some(me) = names.iter().position(|n| *n == name) else {
            return self.error(src, msg_id, MALFORMED, "node_ids must contain node_id");
        };
        let config = small_store(me as u64 + 1, 1);
        self.disk = empty_disk(&config);
        let id = StoreId(me as u32 + 1);
        self.node = Some(Node::new(id, open(config, &mut self.disk)?));
        (self.name, self.names) = (name, names);
        for n in 0..self.names.len() {
            let register = Register {
                store: None,
                uuid: n as u128 + 1,
                server_uuid: n as u128 + 1,
                incarnation: 1,
                boot_id: 1,
                dev_ino: (1, n as u64),
                rack: self.names[n].clone(),
                addr: ([127, 0, 0, 1], 1).into(),
                capacity: 1 << 40,
                used: 0,
            };
            let registered = self.apply(Command::Register(register));
            assert!(
                matches!(registered, Reply::Store(StoreReply::Registered { .. })),
                "an empty master takes every store"
            );
        }
        self.step(Input::Session { session: SessionId(1), until: Time::NEVER, next_chunk: ChunkHandle(0) })?;
        self.say(src, json!({"type": "init_ok", "in_reply_to": msg_id}))
    }

    fn apply(&mut self, command: Command) -> Reply {
        let stamp_ns = self.began.elapsed().as_nanos() as u64;
        self.master.apply(&Entry { stamp_ns, wall_ns: 0, salt: stamp_ns, command })
    }

    // --- allocate_chunk: the first node is the master -----------------------------------------

    fn allocate_asked(&mut self, src: &str, body: Value, msg_id: &Value) -> anyhow::Result<()> {
        let (Some(_), Some(_)) = (body["file"].as_str(), body["chunk_index"].as_u64()) else {
            return self.error(src, msg_id, MALFORMED, "allocate_chunk needs file and chunk_index");
        };
        let master = self.names[0].clone();
        if self.name == master {
            let answer = self.allocate(&body);
            return self.allocate_answer(src, msg_id, answer);
        }
        let ask = json!({"allocate": body, "for": src, "msg_id": msg_id});
        self.link_send(&master, ask)
    }

    fn allocate(&mut self, body: &Value) -> Value {
        let file = body["file"].as_str().unwrap_or_default().to_owned();
        let index = body["chunk_index"].as_u64().unwrap_or_default();
        if let Some(known) = self.allocations.get(&(file.clone(), index)) {
            return known.clone();
        }
        // Each chunk is a file of its own in the metadata: the clients of this protocol may ask
        // for any index first.
        self.next_write += 1;
        let request = RequestId { client: ClientId(1), seq: self.next_write };
        let path = format!("/{:016x}/{index}", hash(file.as_bytes())).into_bytes();
        let mutation = Mutation::Create {
            path,
            mode: 0o644,
            owner: Owner::default(),
            exclusive: true,
            parents: true,
            chunk: true,
            near: self.name.clone(),
        };
        let lowest = self.next_write;
        let reply = match self.next_write {
            // The first request of a client opens its session.
            2 => {
                self.apply(Command::Mutate { request: RequestId { seq: 1, ..request }, lowest: 1, mutation })
            }
            _ => self.apply(Command::Mutate { request, lowest, mutation }),
        };
        let Reply::Master(MasterReply::Opened { chunk: Some(chunk), .. }) = reply else {
            return json!({"error": format!("{reply:?}")});
        };
        let config = chunk.config;
        let name = |id: &StoreId| self.names[id.0 as usize - 1].clone();
        let secondaries: Vec<String> =
            config.members.iter().filter(|m| **m != config.primary).map(name).collect();
        let answer = json!({"chunk_handle": config.handle.to_string(), "primary": name(&config.primary),
            "secondaries": secondaries, "lease_expires_ms": CHUNK_LEASE_MS});
        self.allocations.insert((file, index), answer.clone());
        answer
    }

    fn allocate_answer(&mut self, src: &str, msg_id: &Value, answer: Value) -> anyhow::Result<()> {
        if answer.get("error").is_some() {
            return self.error(src, msg_id, UNAVAILABLE, "the chunk could not be placed");
        }
        self.say(src, json!({"type": "allocate_chunk_ok", "in_reply_to": msg_id, "chunk_handle": answer["chunk_handle"],
            "primary": answer["primary"], "secondaries": answer["secondaries"], "lease_expires_ms": answer["lease_expires_ms"]}))
    }

    // --- chunk_write: this node is the client ------------------------------------------------------

    fn chunk_write(&mut self, src: &str, body: &Value, msg_id: &Value) -> anyhow::Result<()> {
        let store = |n: &Value| {
            let at = self.names.iter().position(|name| n.as_str() == Some(name));
            at.map(|at| StoreId(at as u32 + 1))
        };
        let parsed = (|| {
            let handle = handle_of(body["chunk_handle"].as_str()?);
            let (offset, data) = (body["offset"].as_u64()?, body["data"].as_str()?.as_bytes().to_vec());
            let primary = store(&body["primary"])?;
            let mut members = vec![primary];
            for s in body["secondaries"].as_array()? {
                members.push(store(s)?);
            }
            let config =
                ChunkConfig { handle, epoch: Epoch::first(0), primary, members, sealed: None, wait_ms: 0 };
            let fits = !data.is_empty() && data.len() <= WRITE_BYTES_MAX;
            (config.invalid().is_none() && fits).then_some((config, offset, Bytes::from(data)))
        })();
        let Some((config, offset, data)) = parsed else {
            let text = "chunk_write needs chunk_handle, offset, data (1 byte to 1 MiB), primary and secondaries, all of them known nodes";
            return self.error(src, msg_id, MALFORMED, text);
        };
        // One client a line's sender; its msg_id is the request's number: a retry is known by it.
        let seq = msg_id.as_u64().unwrap_or(self.next_write) + 1;
        let request = RequestId { client: ClientId(hash(src.as_bytes()) as u128), seq };
        let lowest = seq.saturating_sub(CHUNK_CLIENT_WINDOW).max(1);
        let conn = self.next_write;
        self.next_write += 1;
        let me = StoreId(self.names.iter().position(|n| *n == self.name).expect("init checked") as u32 + 1);
        // The closest server is this one, if it is among them; the bytes go on from there.
        let mut chain = config.members.clone();
        chain.sort_by_key(|m| *m != me);
        let handle = config.handle;
        let (primary, members) = (config.primary, config.members.len() as u8);
        let msg = ClientChunk::Write {
            request,
            lowest,
            handle,
            offset: Some(offset),
            len: data.len() as u32,
            inline: None,
            create: Some(config),
        };
        let pieces_left = data.len().div_ceil(PIECE_BYTES_MAX);
        let until = Instant::now() + ANSWER;
        self.writes.insert(
            conn,
            Pushing { src: src.into(), msg_id: msg_id.clone(), primary, msg, pieces_left, members, until },
        );
        for index in 0..pieces_left {
            let at = index * PIECE_BYTES_MAX;
            let part = data.slice(at..(at + PIECE_BYTES_MAX).min(data.len()));
            let (index, total, piece) = (index as u16, data.len() as u32, Piece::of(&part));
            let push = ClientChunk::Push { request, handle, index, total, chain: chain[1..].to_vec(), piece };
            self.send_to_store(chain[0], conn, push, part)?;
        }
        Ok(())
    }

    fn send_to_store(&mut self, to: StoreId, conn: u64, msg: ClientChunk, data: Bytes) -> anyhow::Result<()> {
        let name = self.names[to.0 as usize - 1].clone();
        if name == self.name {
            let epoch = Epoch::first(0);
            return self.step(Input::Client { conn, request: 0, epoch, snapshot: 0, msg, data });
        }
        self.link_send(
            &name,
            json!({"client": conn, "msg": hex(&common::wire::encode(&msg)), "data": hex(&data)}),
        )
    }

    fn write_progress(&mut self, conn: u64, reply: ClientChunkReply) -> anyhow::Result<()> {
        let Some(write) = self.writes.get_mut(&conn) else {
            return Ok(());
        };
        match reply {
            ClientChunkReply::Held => {
                write.pieces_left -= 1;
                if write.pieces_left == 0 {
                    let (to, msg) = (write.primary, write.msg.clone());
                    return self.send_to_store(to, conn, msg, Bytes::new());
                }
                Ok(())
            }
            ClientChunkReply::Written { len, serial, .. } => {
                let write = self.writes.remove(&conn).expect("found above");
                self.say(
                    &write.src,
                    json!({"type": "chunk_write_ok", "in_reply_to": write.msg_id, "bytes_written": len,
                    "replicas_acked": write.members, "serial_number": serial.0}),
                )
            }
            ClientChunkReply::Refused(refusal) => {
                let write = self.writes.remove(&conn).expect("found above");
                self.error(&write.src, &write.msg_id, UNAVAILABLE, &refusal.to_string())
            }
            _ => Ok(()),
        }
    }

    // --- the core ----------------------------------------------------------------------------

    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = Time(self.began.elapsed().as_nanos() as u64 + 1);
            let mut out = vec![];
            self.node.as_mut().expect("initialised").step(now, input, &mut out);
            for output in out {
                match output {
                    Output::Disk(op) => inputs.push_back(Input::Disk(self.disk.perform(op))),
                    Output::Peer { to, msg, data } => {
                        let name = self.names[to.0 as usize - 1].clone();
                        let line =
                            json!({"peer": hex(&common::wire::encode(&msg)), "data": hex(&data.concat())});
                        self.link_send(&name, line)?;
                    }
                    // Connections are numbered (asker, write): the asker's own have no node.
                    Output::Reply { conn, msg, .. } => match conn >> 32 {
                        0 => self.write_progress(conn, msg)?,
                        asker => {
                            let name = self.names[asker as usize - 1].clone();
                            let line =
                                json!({"reply": conn & 0xffff_ffff, "msg": hex(&common::wire::encode(&msg))});
                            self.link_send(&name, line)?;
                        }
                    },
                    // Who holds a chunk is in the request: there is nobody to change it.
                    Output::Master(ask) => inputs.push_back(Input::Master {
                        handle: ask.handle,
                        number: ask.number,
                        answer: Err(Refusal::new(Code::Unavailable, "a replica does not answer")),
                    }),
                    Output::Confirmed(_) | Output::Post(_) => {}
                    Output::Failed(why) => anyhow::bail!("the disk in memory has failed: {why}"),
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let late: Vec<u64> = self.writes.iter().filter(|(_, w)| w.until <= now).map(|(c, _)| *c).collect();
        for conn in late {
            let write = self.writes.remove(&conn).expect("just seen");
            self.error(
                &write.src,
                &write.msg_id,
                TIMEOUT,
                "a replica does not answer; whether it was written is not known",
            )?;
        }
        let mut again = vec![];
        let mut lost = vec![];
        for (name, link) in &mut self.links {
            let Some((number, line)) = link.unacked.front() else {
                continue;
            };
            let heard = *link.heard.get_or_insert(now);
            if now.duration_since(heard) > LOST && !link.lost {
                link.lost = true;
                lost.push(name.clone());
            }
            if link.sent.is_none_or(|at| now.duration_since(at) >= RESEND) {
                link.sent = Some(now);
                again.push((name.clone(), json!({"type": "cairn", "number": number, "line": line})));
            }
        }
        for (name, body) in again {
            self.say(&name, body)?;
        }
        for name in lost {
            if let Some(at) = self.names.iter().position(|n| *n == name) {
                self.step(Input::PeerLost { peer: StoreId(at as u32 + 1) })?;
            }
        }
        let due = self.node.as_ref().and_then(|n| n.deadline());
        if due.is_some_and(|at| at.0 <= self.began.elapsed().as_nanos() as u64) {
            self.step(Input::Wake)?;
        }
        Ok(())
    }

    // --- links: numbered, acknowledged, in order ----------------------------------------------

    fn link_send(&mut self, to: &str, line: Value) -> anyhow::Result<()> {
        let link = self.links.entry(to.into()).or_default();
        link.next += 1;
        let number = link.next;
        if link.unacked.is_empty() {
            (link.sent, link.heard) = (Some(Instant::now()), Some(Instant::now()));
        }
        link.unacked.push_back((number, line.clone()));
        self.say(to, json!({"type": "cairn", "number": number, "line": line}))
    }

    fn link_ack(&mut self, src: &str, body: &Value) -> anyhow::Result<()> {
        let upto = body["upto"].as_u64().unwrap_or(0);
        let link = self.links.entry(src.into()).or_default();
        link.unacked.retain(|(number, _)| *number > upto);
        (link.heard, link.sent, link.lost) = (Some(Instant::now()), None, false);
        Ok(())
    }

    fn link_line(&mut self, src: &str, body: &Value) -> anyhow::Result<()> {
        let Some(from) = self.names.iter().position(|n| n == src) else {
            return Ok(());
        };
        let link = self.links.entry(src.into()).or_default();
        let number = body["number"].as_u64().unwrap_or(0);
        /// Lines that may come before their turn.
        const EARLY_MAX: u64 = 4096;
        if number > link.received && number < link.received + EARLY_MAX {
            link.early.insert(number, body["line"].clone());
        }
        let mut ready = vec![];
        while let Some(line) = link.early.remove(&(link.received + 1)) {
            link.received += 1;
            ready.push(line);
        }
        let upto = link.received;
        self.say(src, json!({"type": "cairn_ack", "upto": upto}))?;
        for line in ready {
            self.peer_line(src, StoreId(from as u32 + 1), &line)?;
        }
        Ok(())
    }

    fn peer_line(&mut self, src: &str, from: StoreId, line: &Value) -> anyhow::Result<()> {
        let bytes = |key: &str| line[key].as_str().and_then(unhex).unwrap_or_default();
        let data = Bytes::from(bytes("data"));
        if line.get("peer").is_some() {
            let Ok(msg) = common::wire::decode::<Peer>(&bytes("peer")) else {
                return Ok(());
            };
            return self.step(Input::Peer { from, snapshot: 0, msg, data });
        }
        if let Some(conn) = line["client"].as_u64() {
            let Ok(msg) = common::wire::decode::<ClientChunk>(&bytes("msg")) else {
                return Ok(());
            };
            let conn = (from.0 as u64) << 32 | (conn & 0xffff_ffff);
            return self.step(Input::Client {
                conn,
                request: 0,
                epoch: Epoch::first(0),
                snapshot: 0,
                msg,
                data,
            });
        }
        if let Some(conn) = line["reply"].as_u64() {
            let Ok(msg) = common::wire::decode::<ClientChunkReply>(&bytes("msg")) else {
                return Ok(());
            };
            return self.write_progress(conn, msg);
        }
        if line.get("allocate").is_some() {
            let answer = self.allocate(&line["allocate"]);
            let told = json!({"allocated": answer, "for": line["for"], "msg_id": line["msg_id"]});
            return self.link_send(src, told);
        }
        if line.get("allocated").is_some() {
            let to = line["for"].as_str().unwrap_or_default().to_owned();
            return self.allocate_answer(&to, &line["msg_id"], line["allocated"].clone());
        }
        Ok(())
    }
}

/// "ch_00042" is 42; any other name is its hash.
fn handle_of(name: &str) -> ChunkHandle {
    let number = name.strip_prefix("ch_").and_then(|n| n.parse::<u64>().ok());
    let number = number.filter(|n| *n > 0 && *n < 1 << 47);
    ChunkHandle(number.unwrap_or((hash(name.as_bytes()) >> 17) | 1 << 47))
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        write!(s, "{b:02x}").expect("a string takes everything");
        s
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect()
}

/// JSON with a space after each colon and comma, as the samples have it; `type` comes first.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            const FIRST: [&str; 3] = ["type", "in_reply_to", "msg_id"];
            let first = FIRST.iter().filter_map(|k| map.get_key_value(*k)).map(|(k, v)| (k.as_str(), v));
            let rest = map.iter().filter(|(k, _)| !FIRST.contains(&k.as_str())).map(|(k, v)| (k.as_str(), v));
            let parts: Vec<String> =
                first.chain(rest).map(|(k, v)| format!("{}: {}", json!(k), spaced(v))).collect();
            format!("{{{}}}", parts.join(", "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
