//! The house rules that a program can check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Who may depend on whom inside the house. Tests may use more.
const EDGES: &[(&str, &[&str])] = &[
    ("common", &[]),
    ("common/net", &["common"]),
    ("master/core", &["common"]),
    ("master", &["common", "common-net", "master-core"]),
    ("chunkserver/core", &["common"]),
    ("chunkserver", &["common", "common-net", "chunkserver-core"]),
    ("client/core", &["common"]),
    ("client", &["common", "common-net", "client-core"]),
    ("sim", &["common", "master-core", "chunkserver-core", "client-core"]),
    // `bench` weighs the masters' state.
    ("bench", &["common", "client", "master-core", "ops"]),
    // `ops` reads chunkservers' configurations and reports their end as their parent would.
    ("ops", &["common", "client", "chunkserver"]),
    ("gateway", &["common", "client"]),
    ("cli", &["common", "client", "gateway", "master", "chunkserver", "sim", "bench", "ops"]),
];

const HOUSE: &[&str] = &[
    "common",
    "common-net",
    "master-core",
    "master",
    "chunkserver-core",
    "chunkserver",
    "client-core",
    "client",
    "sim",
    "bench",
    "ops",
    "gateway",
    "cli",
];

#[test]
fn crates_depend_only_on_whom_they_may() {
    for (dir, allowed) in EDGES {
        let manifest = std::fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines().filter(|l| !l.trim().is_empty()) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(!HOUSE.contains(&name) || allowed.contains(&name), "{dir} must not depend on {name}");
        }
    }
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out.sort();
}

#[test]
fn cores_name_no_clock_file_socket_or_unordered_map() {
    const BANNED: [&str; 9] = [
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::net::Tcp",
        "HashMap",
        "HashSet",
        "thread::",
        "tokio",
        "rand::",
    ];
    for core in ["master/core/src", "chunkserver/core/src", "client/core/src", "common/src"] {
        let mut files = vec![];
        sources(&root().join(core), &mut files);
        for file in files.iter().filter(|f| !f.ends_with("index_test.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            for word in BANNED {
                assert!(!text.contains(word), "{}: {word} has no place in a core", file.display());
            }
        }
    }
}

#[test]
fn only_the_chunkservers_shell_is_unsafe() {
    let mut files = vec![];
    for dir in ["common", "master", "client", "sim", "bench", "ops/src", "cli/src", "gateway", "chunkserver"]
    {
        sources(&root().join(dir), &mut files);
    }
    let word = ["unsafe", " "].concat();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let shell = file.starts_with(root().join("chunkserver/src"));
        assert!(shell || !text.contains(&format!("{word}{{")), "{}: not here", file.display());
    }
}

#[test]
fn documents_say_what_the_source_says() {
    let documents =
        [("common/WIRE.md", "common/src/wire"), ("chunkserver/FORMAT.md", "chunkserver/core/src/store")];
    for (document, source) in documents {
        let mut files = vec![];
        sources(&root().join(source), &mut files);
        let hash = files.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, file| {
            std::fs::read(file).unwrap().iter().fold(h, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
        });
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        let wanted = format!("<!-- tidy: hash of {source} = {hash:016x} -->");
        assert!(text.contains(&wanted), "{document} may be stale: read it again, then put into it\n{wanted}");
    }
}

#[test]
fn long_files_are_reported() {
    let mut files = vec![];
    for (dir, _) in EDGES {
        sources(&root().join(dir).join("src"), &mut files);
    }
    files.sort();
    files.dedup();
    let mut long = BTreeMap::new();
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        if lines > 500 {
            long.insert(lines, file);
        }
    }
    for (lines, file) in long.iter().rev() {
        println!("{lines} lines: {}", file.display());
    }
}
