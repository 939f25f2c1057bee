//! Reads the source and fails on what ARCHITECTURE.md rules out. A rule that is only written down is not kept.
#![allow(clippy::expect_used, clippy::map_err_ignore, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// All Rust files below src/, by their path from there, without comments and without their unit tests.
fn sources() -> BTreeMap<String, String> {
    // Unit tests in a file of their own, which is compiled under `cfg(test)` alone.
    let is_tests = |path: &Path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    fn collect(folder: &Path, is_tests: &impl Fn(&Path) -> bool, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("src/ can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, is_tests, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_tests(&path) {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &is_tests, &mut files);
    assert!(files.len() > 20, "src/ has {} files only", files.len());
    let code_of = |text: String| {
        let code = text.split("\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    };
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below src/").to_string_lossy().into_owned();
            (name, code_of(fs::read_to_string(&path).expect("readable")))
        })
        .collect()
}

/// Whether `word` stands in `code` as a word.
fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
}

/// The files in which any of `words` stands.
fn files_with(words: &[&str]) -> Vec<String> {
    let sources = sources();
    let with = |(name, code): (String, String)| words.iter().any(|word| has_word(&code, word)).then_some(name);
    sources.into_iter().filter_map(with).collect()
}

#[test]
fn one_mutex_and_where_it_stands() {
    assert_eq!(files_with(&["Mutex", "MutexGuard", "RwLock", "Condvar"]), ["engine/state/mod.rs"]);
    let state = &sources()["engine/state/mod.rs"];
    assert_eq!(state.matches("Mutex::new(").count(), 1, "one Mutex is made");
    assert_eq!(state.matches("Mutex<").count(), 1, "one Mutex is kept");
    assert!(!state.contains("pub fn lock"), "no guard leaves the file");
    let public: Vec<_> = state.lines().filter(|line| line.contains("pub fn") && line.contains("Guard")).collect();
    assert!(public.is_empty(), "{public:?}");
}

#[test]
fn the_engine_knows_no_protocol_and_no_command_line() {
    for (name, code) in sources() {
        if name.starts_with("engine/")
            || name.starts_with("error/")
            || name.starts_with("model/")
            || name.starts_with("limits")
        {
            for word in ["tonic", "prost", "hyper", "axum", "http", "http_body", "tower", "clap", "utoipa"] {
                assert!(!has_word(&code, word), "{name} names {word}");
            }
            // Records and results are stored as JSON.
            let stores_json = name.starts_with("engine/storage/") || name.starts_with("engine/jobs/");
            assert!(stores_json || !has_word(&code, "serde_json"), "{name} names serde_json");
        }
    }
}

#[test]
fn files_are_touched_in_the_store_alone() {
    // src/cli/ reads and writes the files that a user names.
    let operations = [
        "fs::",
        " File::open",
        "(File::open",
        " File::create",
        "(File::create",
        "OpenOptions",
        ".read_at(",
        ".sync_all(",
        ".sync_data(",
        "try_lock(",
    ];
    let touches = |code: &String| operations.iter().any(|operation| code.contains(operation));
    let (storage, others): (BTreeMap<_, _>, BTreeMap<_, _>) = sources()
        .into_iter()
        .filter(|(_, code)| touches(code))
        .partition(|(name, _)| name.starts_with("engine/storage/"));
    // All of the engine but `storage/` reads through its `Reader`.
    let expected = [
        "cli/credentials.rs",
        "cli/group_sum.rs",
        "cli/links.rs",
        "cli/upload/blocks.rs",
        "engine/group_by/spill.rs",
        "engine/runtime/secret_file.rs",
        "engine/stats.rs",    // /proc/self/status
        "model/file_mode.rs", // the umask
        "server/audit_file.rs",
        "server/log_file.rs", // whether the log file can be written
        "server/logging.rs",  // a handle on standard error
    ];
    assert_eq!(others.into_keys().collect::<Vec<_>>(), expected);
    // Whatever reaches a file asserts that the lock is not held.
    for (name, code) in storage {
        assert!(code.contains("assert_unlocked();"), "{name} does not check the lock");
    }
}

#[test]
fn the_environment_is_read_in_one_place() {
    assert_eq!(files_with(&["env::var", "var_os", "env::vars"]), Vec::<String>::new());
    for (name, code) in sources() {
        // Through clap alone: the server's flags in config.rs and below, the clients' in cli/.
        let may = name == "config.rs" || name.starts_with("config/") || name.starts_with("cli/");
        assert!(may || !code.contains("env = \""), "{name} reads the environment");
    }
}

#[test]
fn unsafe_is_in_the_kernels_alone_and_says_why() {
    let is_unsafe =
        |code: &String| ["unsafe {", "unsafe fn", "unsafe impl", "unsafe_code"].iter().any(|it| code.contains(it));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (name, _) in sources().into_iter().filter(|(_, code)| is_unsafe(code)) {
        assert!(name.starts_with("engine/kernels/"), "{name} has unsafe code");
        let text = fs::read_to_string(folder.join(&name)).expect("readable");
        let reasons = text.matches("// SAFETY: ").count();
        assert_eq!(text.matches("unsafe {").count(), reasons, "{name}: each block has its reason");
    }
}

#[test]
fn nothing_is_left_for_later_or_thrown_away() {
    for (name, code) in sources() {
        for banned in
            ["TODO", "FIXME", "todo!(", "unimplemented!(", "map_err(|_|", "Mutex::lock", "read_to_string(path"]
        {
            assert!(!code.contains(banned), "{name} has {banned}");
        }
        assert!(!code.contains("unbounded_channel") && !code.contains("unbounded("), "{name} has an unbounded queue");
    }
}

#[test]
fn every_module_says_what_lives_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for name in sources().keys() {
        let text = fs::read_to_string(root.join(name)).expect("readable");
        assert!(text.starts_with("//! "), "{name} does not begin by saying what lives there");
    }
}

#[test]
fn no_file_is_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for name in sources().keys() {
        let lines = fs::read_to_string(root.join(name)).expect("readable").lines().count();
        let lines_max = if name.starts_with("engine/kernels/") { 700 } else { 600 };
        assert!(lines <= lines_max, "{name} has {lines} lines, more than {lines_max}");
    }
    let facade = fs::read_to_string(root.join("engine/mod.rs")).expect("readable").lines().count();
    assert!(facade <= 350, "the facade has {facade} lines, more than 350");
}

#[test]
fn the_cluster_adds_no_crate_to_the_server() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name| fs::read_to_string(root.join(name)).expect("readable");
    let has_crates_of_it =
        |lock: &str| ["datafusion", "ballista"].iter().any(|it| lock.contains(&format!("name = \"{it}")));
    assert!(!has_crates_of_it(&read("Cargo.lock")), "Cargo.lock has crates of the cluster");
    assert!(has_crates_of_it(&read("cluster/Cargo.lock")), "the check finds them where they are");
    assert!(!read("Cargo.toml").contains("[workspace]"), "members of one workspace share a lock file");
    // Both have the same Arrow, so that rows are handed over as they are.
    let arrow = |lock: String| {
        let found = lock.split("[[package]]").find(|it| it.contains("name = \"arrow\"\n")).expect("arrow").to_owned();
        found.lines().find(|line| line.starts_with("version")).expect("a version").to_owned()
    };
    assert_eq!(arrow(read("Cargo.lock")), arrow(read("cluster/Cargo.lock")));
}

/// What is compiled into `tally`, beside what it is compiled with. A crate that is new here is a decision: it is added to the list by hand.
#[test]
fn the_server_is_made_of_the_crates_that_are_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates_of = |folder: &Path| {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--edges=normal", "--locked", "--offline", "--prefix=none", "--format={p}"])
            .current_dir(folder)
            .output()
            .expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let text = String::from_utf8(tree.stdout).expect("text");
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let listed = fs::read_to_string(root.join("tests/data/crates.txt")).expect("readable");
    let listed: BTreeSet<_> = listed.lines().map(str::to_owned).collect();
    let found = crates_of(root);
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(new.is_empty(), "crates that are not in tests/data/crates.txt: {new:?}");
    // Other machines need other crates.
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        assert_eq!(found, listed, "tests/data/crates.txt lists crates that are gone");
    }
    for prefix in ["datafusion", "ballista"] {
        assert!(!listed.iter().any(|name| name.starts_with(prefix)), "{prefix} is in tests/data/crates.txt");
    }
}
