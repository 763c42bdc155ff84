//! Masters of a cluster of real processes: a vote that is kept back, members that come and go, one that was away.

mod running;

use common::wire::Caller;
use common::wire::client_master::{MasterReply, MasterRequest};
use common::{ClusterId, Code};
use common_net::Conn;
use ops::cluster::ClientFile;
use running::Running;
use std::time::{Duration, Instant};

#[test]
fn a_master_that_restarts_answers_no_vote_for_a_while() {
    let mut c = Running::start(3, 3);
    let file: ClientFile = c.cluster.client_file().unwrap();
    let cluster = ClusterId(u64::from_str_radix(&file.cluster, 16).unwrap());
    c.cluster.kill("m3").unwrap();
    c.cluster.start("m3").unwrap();
    let began = Instant::now();
    let vote = openraft_vote();
    let answers = c.runtime.block_on(async {
        let mut answers = vec![];
        while began.elapsed() < Duration::from_millis(1500) {
            let dialled = common_net::Conn::dial(
                &file.masters[2],
                Caller::Master(9),
                cluster,
                Duration::from_millis(100),
            )
            .await;
            if let Ok(conn) = dialled {
                let asked = Instant::now();
                let answer = conn
                    .call::<_, master::raft::network::Answer>(
                        &master::raft::network::Call::PreVote,
                        0,
                        vec![vote.clone().into()],
                        Duration::from_millis(500),
                    )
                    .await;
                answers.push((asked.duration_since(began), answer.is_ok()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        answers
    });
    let first =
        answers.iter().find(|(_, answered)| *answered).map(|(at, _)| *at).expect("it votes in the end");
    let refused = answers.iter().filter(|(_, answered)| !answered).count();
    println!("{refused} refused, first answer after {first:?}");
    assert!(refused > 0);
    assert!(first >= Duration::from_millis(common::limits::ELECTION_MS_MAX), "{first:?}");
}

/// A request for a vote in a term far ahead, as openraft encodes it.
fn openraft_vote() -> Vec<u8> {
    let request =
        openraft::raft::VoteRequest::<master::raft::TypeConfig>::new(openraft::Vote::new(99, 2), None);
    bincode::serde::encode_to_vec(&request, bincode::config::standard()).unwrap()
}

#[test]
fn masters_are_added_and_removed_while_running_and_catch_up_by_snapshot() {
    let mut c = Running::start(1, 3);
    let home = c.cluster.dir().join("m2");
    std::fs::create_dir(&home).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = c.cluster.client_file().unwrap();
    let text = format!(
        "id = 2\ncluster = \"{}\"\nlisten = \"{port}\"\ndir = {:?}\n",
        file.cluster,
        home.join("data")
    );
    std::fs::write(home.join("config.toml"), text).unwrap();
    c.cluster.start("m2").unwrap();
    c.ok(&["mkdir", "/before"]);
    c.ok(&["admin", "master", "add", "2", &port.to_string()]);
    c.ok(&["mkdir", "/after"]);
    let status: serde_json::Value = serde_json::from_slice(&c.ok(&["--json", "admin", "status"])).unwrap();
    assert_eq!(status["masters"].as_array().unwrap().len(), 2);
    c.ok(&["admin", "master", "transfer", "2"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status: serde_json::Value =
            serde_json::from_slice(&c.ok(&["--json", "admin", "status"])).unwrap();
        if status["leader"] == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
    assert_eq!(c.ok(&["ls", "/"]), b"after/\nbefore/\n");
    c.ok(&["admin", "master", "remove", "1"]);
    c.ok(&["mkdir", "/alone"]);
    assert_eq!(c.ok(&["ls", "/"]), b"after/\nalone/\nbefore/\n");
}

#[test]
fn a_master_that_was_away_for_longer_than_the_log_reaches_back_gets_an_image_and_can_lead() {
    let mut c = Running::start(3, 3);
    let status = |c: &Running| -> serde_json::Value {
        serde_json::from_slice(&c.ok(&["--json", "admin", "status"])).unwrap()
    };
    c.ok(&["mkdir", "/d"]);
    let leader = status(&c)["leader"].as_u64().unwrap();
    let away = leader % 3 + 1;
    c.cluster.kill(&format!("m{away}")).unwrap();
    // Long entries: the log becomes long soon, and the state does not.
    let first = |id: u64| c.cluster.dir().join(format!("m{id}/data/log/000000000001.log"));
    let end = Instant::now() + Duration::from_secs(120);
    let mut number = 0u32;
    while first(leader).exists() {
        assert!(Instant::now() < end, "the log is given up nowhere after {number} entries");
        let values: Vec<Vec<u8>> = (number..number + 64).map(|n| n.to_le_bytes().repeat(8 * 1024)).collect();
        number += 64;
        let set = values.iter().map(|value| c.client.set_xattr(b"/d".to_vec(), b"user.a", Some(value), None));
        c.runtime.block_on(futures::future::try_join_all(set)).unwrap();
    }
    c.ok(&["mkdir", "/after"]);
    c.cluster.start(&format!("m{away}")).unwrap();
    loop {
        let all = status(&c);
        let it = &all["masters"].as_array().unwrap().iter().find(|m| m["id"] == away).unwrap().clone();
        let of_leader = all["masters"].as_array().unwrap().iter().find(|m| m["id"] == leader).unwrap();
        if it["applied"].is_u64() && it["applied"] == of_leader["applied"] {
            assert_eq!(all["digests_agree"], true);
            assert!(it["snapshot"].as_u64().unwrap() > 64, "it got an image: {all}");
            break;
        }
        assert!(Instant::now() < end, "{all}");
    }
    c.ok(&["admin", "master", "transfer", &away.to_string()]);
    while status(&c)["leader"] != away {
        assert!(Instant::now() < end);
    }
    assert_eq!(c.ok(&["ls", "/"]), b"after/\nd/\n");
}

#[test]
fn a_leader_that_was_away_does_not_answer_from_what_it_knew() {
    let r = Running::start(3, 1);
    let file = r.cluster.client_file().unwrap();
    let cluster = ClusterId(u64::from_str_radix(&file.cluster, 16).unwrap());
    let leader = r.runtime.block_on(r.client.status()).unwrap().leader.unwrap();
    let addr = &file.masters[leader as usize - 1];
    let limit = Duration::from_secs(5);
    let conns: Vec<Conn> = (0..32)
        .map(|_| r.runtime.block_on(Conn::dial(addr, Caller::Client, cluster, limit)).unwrap())
        .collect();
    let pid = r.cluster.pid(&format!("m{leader}")).unwrap();
    ops::cluster::signal(pid, "STOP").unwrap();
    r.runtime.block_on(r.client.create(b"/new", true)).unwrap();
    // These wait in its sockets when it goes on, before it hears that another one leads.
    let request = MasterRequest::Stat { path: b"/new".to_vec() };
    let asked: Vec<_> =
        conns.iter().map(|conn| r.runtime.block_on(conn.send(&request, 0, vec![])).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    ops::cluster::signal(pid, "CONT").unwrap();
    for (conn, answer) in conns.iter().zip(asked) {
        match r.runtime.block_on(conn.answer::<MasterReply>(answer, limit)).map(|(reply, _)| reply) {
            Ok(MasterReply::Attr(_)) | Err(_) => {}
            Ok(MasterReply::Refused { code: Code::NotLeader | Code::Unavailable, .. }) => {}
            Ok(other) => panic!("it was made before this was asked: {other:?}"),
        }
    }
}
