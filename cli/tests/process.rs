//! What a command has of the system: signals, and how many files it may have open. No cluster runs.

use common::ClusterId;
use common::wire::frame::{HEADER_BYTES, Header};
use common::wire::{self, HelloOk};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn cairn() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cairn"))
}

/// A server that has gone is an error to who writes to it; by a signal, a broken pipe ends commands, and a mount.
#[test]
fn a_server_that_hangs_up_ends_no_command_by_a_signal() {
    const HANG_UPS: usize = 20;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = port.local_addr().unwrap();
    // Over a unix socket the first write after it fails already.
    let listener = runtime.block_on(async { common_net::here::Listener::new(addr) }).unwrap();
    let mut command = Command::new(cairn())
        .args(["--cluster", &addr.to_string(), "ls", "/"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    for _ in 0..HANG_UPS {
        let accepted = runtime.block_on(async {
            tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), listener.accept()).await
        });
        let ended = command.try_wait().unwrap();
        assert!(ended.is_none() && accepted.is_ok(), "it ended: {ended:?}");
        let mut stream = accepted.unwrap().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).unwrap();
        stream.read_exact(&mut vec![0; Header::decode(&head).unwrap().body_len as usize]).unwrap();
        let greeting = HelloOk { cluster: ClusterId(7), version: 0 };
        stream.write_all(&wire::frame(ClusterId(7), 0, 0, &greeting, 0)).unwrap();
    }
    command.kill().unwrap();
    command.wait().unwrap();
}

#[test]
fn as_many_files_may_be_open_as_the_system_lets_them() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 100; exec \"$0\" node"]).arg(cairn());
    let mut node = command.stdin(Stdio::piped()).spawn().unwrap();
    let limits = format!("/proc/{}/limits", node.id());
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // Before that it is the shell, and its limits those of this process.
        let began = std::fs::read_link(format!("/proc/{}/exe", node.id())).unwrap() == cairn();
        let text = std::fs::read_to_string(&limits).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let (soft, hard) = (line.split_whitespace().nth(3).unwrap(), line.split_whitespace().nth(4).unwrap());
        if began && soft == hard {
            break;
        }
        assert!(Instant::now() < end, "{line}");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(node.stdin.take());
    assert!(node.wait().unwrap().success());
}
