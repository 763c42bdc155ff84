//! The JSON-lines node: the samples of its two task descriptions, verbatim, and several real
//! processes behind a router that loses, delays and kills.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The binary: built by whoever runs the workspace's tests.
fn cairn() -> std::path::PathBuf {
    let mut path = std::env::current_exe().expect("a test has a path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("cairn");
    assert!(path.exists(), "build the workspace first: cargo build");
    path
}

fn sample(input: &str) -> Vec<Value> {
    let mut out = vec![];
    let input = std::io::Cursor::new(input.to_owned().into_bytes());
    sim::jsonl::run(input, &mut out).expect("it runs to the end of its input");
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with(
            r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#
        ),
        "{text}"
    );
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn sample_allocate_chunk_returns_primary_and_secondaries() {
    let lines = sample(concat!(
        r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2","n3","n4"]}}"#,
        "\n",
        r#"{"src":"c1","dest":"n1","body":{"type":"allocate_chunk","msg_id":2,"file":"/data/log.dat","chunk_index":0}}"#,
        "\n",
    ));
    let body = &lines[1]["body"];
    assert_eq!(body["type"], "allocate_chunk_ok");
    assert_eq!(body["in_reply_to"], 2);
    assert!(body["chunk_handle"].as_str().unwrap().starts_with("ch_"));
    assert_eq!(body["secondaries"].as_array().unwrap().len(), 2);
    assert_eq!(body["lease_expires_ms"], 60000);
    let mut servers =
        vec![body["primary"].clone(), body["secondaries"][0].clone(), body["secondaries"][1].clone()];
    servers.sort_by_key(|v| v.to_string());
    servers.dedup();
    assert_eq!(servers.len(), 3);
}

#[test]
fn sample_multiple_allocations_produce_unique_chunk_handles() {
    let lines = sample(concat!(
        r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2","n3","n4"]}}"#,
        "\n",
        r#"{"src":"c1","dest":"n1","body":{"type":"allocate_chunk","msg_id":2,"file":"/a.dat","chunk_index":0}}"#,
        "\n",
        r#"{"src":"c1","dest":"n1","body":{"type":"allocate_chunk","msg_id":3,"file":"/b.dat","chunk_index":0}}"#,
        "\n",
    ));
    assert_ne!(lines[1]["body"]["chunk_handle"], lines[2]["body"]["chunk_handle"]);
}

#[test]
fn unknown_types_and_bad_bodies_get_an_error() {
    let lines = sample(concat!(
        r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2","n3"]}}"#,
        "\n",
        r#"{"src":"c1","dest":"n1","body":{"type":"fly","msg_id":2}}"#,
        "\n",
        "this is no JSON\n",
        r#"{"src":"c1","dest":"n1","body":{"type":"chunk_write","msg_id":3,"chunk_handle":"ch_1"}}"#,
        "\n",
    ));
    assert_eq!((&lines[1]["body"]["type"], &lines[1]["body"]["code"]), (&json!("error"), &json!(10)));
    assert_eq!((&lines[2]["body"]["type"], &lines[2]["body"]["code"]), (&json!("error"), &json!(12)));
}

struct Net {
    nodes: Vec<Option<(Child, std::process::ChildStdin)>>,
    from: mpsc::Receiver<Value>,
    held: Vec<(Instant, Value)>,
    rng: StdRng,
    loss: f64,
    answers: Vec<Value>,
}

impl Net {
    fn start(n: usize, loss: f64, seed: u64) -> Net {
        println!("seed {seed}");
        let (to, from) = mpsc::channel();
        let mut nodes = vec![];
        for _ in 0..n {
            let mut child = Command::new(cairn())
                .arg("node")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let to = to.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = to.send(serde_json::from_str(&line).unwrap());
                }
            });
            nodes.push(Some((child, stdin)));
        }
        let rng = StdRng::seed_from_u64(seed);
        let mut net = Net { nodes, from, held: vec![], rng, loss: 0.0, answers: vec![] };
        let names: Vec<String> = (1..=n).map(|i| format!("n{i}")).collect();
        for (i, name) in names.iter().enumerate() {
            net.give(i, &json!({"src": "c0", "dest": name, "body": {"type": "init", "msg_id": 1, "node_id": name, "node_ids": names}}));
        }
        net.until(|a| a.len() == n);
        net.answers.clear();
        net.loss = loss;
        net
    }

    fn give(&mut self, node: usize, line: &Value) {
        if let Some((_, stdin)) = &mut self.nodes[node] {
            let _ = writeln!(stdin, "{line}");
        }
    }

    fn ask(&mut self, node: usize, msg_id: u64, mut body: Value) {
        body["msg_id"] = json!(msg_id);
        self.give(node, &json!({"src": "c1", "dest": format!("n{}", node + 1), "body": body}));
    }

    /// Routes lines until the answers to clients are as wished.
    fn until(&mut self, wished: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !wished(&self.answers) {
            assert!(Instant::now() < deadline, "no answer; so far {:?}", self.answers);
            if let Ok(line) = self.from.recv_timeout(Duration::from_millis(1)) {
                if line["dest"].as_str().unwrap().starts_with('c') {
                    self.answers.push(line);
                } else if !self.rng.random_bool(self.loss) {
                    let delay = Duration::from_millis(self.rng.random_range(0..8));
                    self.held.push((Instant::now() + delay, line));
                }
            }
            let now = Instant::now();
            let due: Vec<Value> =
                self.held.extract_if(.., |(at, _)| *at <= now).map(|(_, line)| line).collect();
            for line in due {
                let to: usize = line["dest"].as_str().unwrap()[1..].parse().unwrap();
                self.give(to - 1, &line);
            }
        }
    }

    fn kill(&mut self, node: usize) {
        if let Some((mut child, _)) = self.nodes[node].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in 0..self.nodes.len() {
            self.kill(n);
        }
    }
}

fn write(offset: u64, data: &str) -> Value {
    json!({"type": "chunk_write", "chunk_handle": "ch_001", "offset": offset, "data": data, "primary": "n1", "secondaries": ["n2", "n3"]})
}

#[test]
fn writes_replicate_to_all_and_serials_rise() {
    let mut net = Net::start(3, 0.0, 1);
    net.ask(0, 2, write(0, "hello world"));
    net.until(|a| a.len() == 1);
    let body = net.answers[0]["body"].clone();
    assert_eq!(body["type"], "chunk_write_ok");
    assert_eq!(
        (&body["bytes_written"], &body["replicas_acked"], &body["serial_number"]),
        (&json!(11), &json!(3), &json!(1))
    );
    // Through another node: it is the client's nearest, the order is still the primary's.
    net.ask(1, 3, write(11, "b"));
    net.until(|a| a.len() == 2);
    assert_eq!(net.answers[1]["body"]["serial_number"], 2);
}

#[test]
fn loss_and_delay_change_nothing() {
    let mut net = Net::start(3, 0.2, 7);
    for i in 0..20u64 {
        net.ask((i % 3) as usize, 10 + i, write(i, "x"));
        net.until(|a| a.len() == i as usize + 1);
        let body = &net.answers[i as usize]["body"];
        assert_eq!(
            (&body["type"], &body["serial_number"]),
            (&json!("chunk_write_ok"), &json!(i + 1)),
            "{body}"
        );
    }
    // A retry of the last one has the same answer.
    net.ask(19 % 3, 29, write(19, "x"));
    net.until(|a| a.len() == 21);
    assert_eq!(net.answers[20]["body"]["serial_number"], 20);
}

#[test]
fn handles_are_unique_across_nodes() {
    let mut net = Net::start(4, 0.2, 3);
    for i in 0..12u64 {
        net.ask(
            (i % 4) as usize,
            100 + i,
            json!({"type": "allocate_chunk", "file": format!("/{i}"), "chunk_index": 0}),
        );
    }
    net.until(|a| a.len() == 12);
    let mut handles: Vec<String> =
        net.answers.iter().map(|a| a["body"]["chunk_handle"].to_string()).collect();
    handles.sort();
    handles.dedup();
    assert_eq!(handles.len(), 12);
}

#[test]
fn a_dead_secondary_fails_the_write() {
    let mut net = Net::start(3, 0.0, 5);
    net.ask(0, 2, write(0, "a"));
    net.until(|a| a.len() == 1);
    net.kill(2);
    net.ask(0, 3, write(1, "b"));
    net.until(|a| a.len() == 2);
    assert_eq!(net.answers[1]["body"]["type"], "error");
    assert_eq!(net.answers[1]["body"]["in_reply_to"], 3);
}
