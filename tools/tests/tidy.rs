//! Guards the architecture: what the tables in `src/ARCHITECTURE.md` say is what the code does.
//!
//! Decides which module may name which, where foreign crates live, where threads start, where
//! etcd's error texts stand, and that every file says what it is for. Taste is for reviews.
//! Test code (below `mod tests`, in `..tests.rs`, `fake.rs` or a `tests` folder) may reach further.

#![expect(clippy::unwrap_used, reason = "a repository that cannot be read fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A file of the repository.
struct Source {
    /// Relative to the root, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The module below `src/`: the folder, or the file itself. `None` elsewhere and for `lib.rs`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let module = inside.split('/').next()?.trim_end_matches(".rs");
        (module != "lib").then_some(module)
    }

    fn is_test(&self) -> bool {
        let is_test =
            |part: &str| part == "tests" || part == "fake.rs" || part.ends_with("tests.rs");
        self.path.split('/').any(is_test)
    }

    /// The code before the tests, without comments and without the insides of strings.
    fn production(&self) -> String {
        if self.is_test() {
            return String::new();
        }
        let end = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        stripped(&self.text[..end])
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["src", "tools", "compat-tests", "proto"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 30, "only {} files were found", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "target" {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let shown = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push(Source { path: shown, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// Blanks out comments and the insides of string literals; line breaks stay.
fn stripped(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let bytes: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.starts_with(&['/', '/']) {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if let Some(length) = raw_string(rest) {
            output.push_str("\"\"");
            at += length;
        } else if rest[0] == '"' {
            output.push_str("\"\"");
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if rest[0] == '\'' && (rest.get(2) == Some(&'\'') || rest.get(1) == Some(&'\\')) {
            let close = rest.iter().skip(2).position(|one| *one == '\'').unwrap_or(0);
            output.push_str("' '");
            at += close + 3;
        } else {
            output.push(rest[0]);
            at += 1;
        }
    }
    output
}

/// The length of the raw string that starts here, if one does.
fn raw_string(rest: &[char]) -> Option<usize> {
    let start = match rest {
        ['r', '"' | '#', ..] => 1,
        ['b', 'r', '"' | '#', ..] => 2,
        _ => return None,
    };
    let hashes = rest[start..].iter().take_while(|one| **one == '#').count();
    if rest.get(start + hashes) != Some(&'"') {
        return None;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    let body = start + hashes + 1;
    let length = rest[body..].windows(close.len()).position(|window| window == close)?;
    Some(body + length + close.len())
}

/// The rows of the table in `ARCHITECTURE.md` whose first heading cells are these.
fn table(headings: [&str; 2]) -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(root().join("src/ARCHITECTURE.md")).unwrap();
    let heading = format!("| {} | {} |", headings[0], headings[1]);
    let rows = page.lines().skip_while(|line| *line != heading).skip(2);
    let rows: BTreeMap<_, _> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            let words = cells[1].split_whitespace().filter(|word| *word != "-");
            (cells[0].replace('`', ""), words.map(str::to_owned).collect())
        })
        .collect();
    assert!(!rows.is_empty(), "ARCHITECTURE.md has no table {heading}");
    rows
}

/// What follows `crate::` in `code`: the first names of paths and of the groups of a `use`.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and the end of another name do not count.
        if code[..at].ends_with(|one: char| one.is_alphanumeric() || one == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            names.extend(first_names(group));
        } else {
            names.extend(identifier(rest));
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String =
        text.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first name of every item in a group, up to its closing brace.
fn first_names(group: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let (mut depth, mut item_starts) = (0, true);
    for (at, one) in group.char_indices() {
        match one {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => item_starts = true,
            _ if one.is_whitespace() => {}
            _ if item_starts => {
                names.extend(identifier(&group[at..]));
                item_starts = false;
            }
            _ => {}
        }
    }
    names
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let allowed = table(["module", "may use"]);
    let modules: BTreeSet<_> = allowed.keys().cloned().collect();
    let mut faults = Vec::new();
    for source in sources() {
        let Some(module) = source.module().filter(|module| *module != "bin") else { continue };
        let Some(may_use) = allowed.get(module) else {
            faults.push(format!("{}: {module} is not in the table", source.path));
            continue;
        };
        let everything = may_use.contains("everything");
        for name in named(&source.production()) {
            let fine = name == module
                || !modules.contains(&name)
                || may_use.contains(&name) && !everything
                || everything && name != "offline";
            if !fine {
                faults.push(format!("{}: {module} may not use {name}", source.path));
            }
        }
    }
    report(&faults);
}

#[test]
fn the_table_of_modules_describes_every_module() {
    let described = table(["module", "what it decides"]);
    let allowed = table(["module", "may use"]);
    assert_eq!(
        described.keys().collect::<Vec<_>>(),
        allowed.keys().collect::<Vec<_>>(),
        "both tables list all modules"
    );
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: BTreeSet<_> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(modules, described.into_keys().collect(), "lib.rs and the table");
}

#[test]
fn the_table_of_dependencies_has_no_cycle() {
    let allowed = table(["module", "may use"]);
    let mut settled: BTreeSet<String> = BTreeSet::new();
    while settled.len() < allowed.len() {
        let next = allowed.iter().find(|(module, uses)| {
            let open =
                uses.iter().any(|used| allowed.contains_key(used) && !settled.contains(used));
            !settled.contains(*module) && (!open || uses.contains("everything"))
        });
        let stuck = || format!("a cycle among all but {settled:?}");
        let (module, _) = next.unwrap_or_else(|| panic!("{}", stuck()));
        settled.insert(module.clone());
    }
}

#[test]
fn foreign_crates_stay_at_home() {
    let homes = table(["crate", "home"]);
    let mut faults = Vec::new();
    for source in sources() {
        let Some(module) = source.module() else { continue };
        let code = source.production();
        for (name, home) in &homes {
            if !home.contains(module) && names_crate(&code, name) {
                faults.push(format!("{}: {name} lives in {home:?}", source.path));
            }
        }
    }
    report(&faults);
}

fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        !code[..at].ends_with(|one: char| one.is_alphanumeric() || one == '_' || one == ':')
    })
}

/// Two owners of one name stop the process when both register it.
#[test]
fn every_metric_has_one_owner() {
    // What nobody measures; it leaves out what somebody does.
    let unmeasured = "src/http/historical.rs";
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for source in sources() {
        if source.module().is_none() || source.is_test() || source.path == unmeasured {
            continue;
        }
        let end = source.text.find("#[cfg(test)]\nmod ").unwrap_or(source.text.len());
        for name in metric_names(&source.text[..end]) {
            if let Some(owner) = owners.insert(name.to_owned(), source.path.clone()) {
                faults.push(format!("{}: {name} belongs to {owner}", source.path));
            }
        }
    }
    assert!(30 < owners.len(), "only {} metrics were found", owners.len());
    report(&faults);
}

/// The string literals that are names of etcd's metrics.
fn metric_names(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2).filter(|literal| {
        let prefixed = ["etcd_", "grpc_server_", "os_fd_"].iter().any(|p| literal.starts_with(p));
        prefixed && literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

#[test]
fn threads_start_in_boot() {
    let starters = [
        "src/base/thread.rs",
        "src/replica/snapshot.rs",
        "src/serve/workers.rs",
        "src/storage/wal/fill.rs",
        "src/storage/wal/purge.rs",
        "src/transport/spool.rs",
    ];
    let mut faults = Vec::new();
    for source in sources() {
        let starter = starters.contains(&source.path.as_str());
        let ours = source.module().is_some_and(|module| module != "boot") && !starter;
        if ours && source.production().contains("thread::spawn(") {
            faults.push(format!("{}: threads start in boot; see ARCHITECTURE.md", source.path));
        }
    }
    report(&faults);
}

#[test]
fn etcd_s_error_texts_stand_in_one_file() {
    let prefix = concat!("\"", "etcdserver: ");
    let mut faults = Vec::new();
    for source in sources() {
        let production = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let elsewhere = source.module().is_some() && source.path != "src/api/status.rs";
        let code: Vec<_> =
            production.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        if elsewhere && !source.is_test() && code.join("\n").contains(prefix) {
            faults.push(format!("{}: error texts stand in api/status.rs", source.path));
        }
    }
    report(&faults);
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut faults = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//! ") {
            faults.push(format!("{}: no //! header", source.path));
        }
    }
    report(&faults);
}

#[test]
fn sources_are_ascii() {
    let mut faults = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate().filter(|(_, line)| !line.is_ascii()) {
            faults.push(format!("{}:{}: {line}", source.path, number + 1));
        }
    }
    report(&faults);
}

#[test]
fn nothing_is_left_for_later_in_a_comment() {
    // Spelled in halves, so that this file passes.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["HA", "CK:"], ["/wo", "rk/"]];
    let marks = marks.map(|halves| halves.concat());
    let mut faults = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                faults.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    report(&faults);
}

#[test]
fn the_reader_of_sources_sees_code_only() {
    let code =
        stripped("use crate::{a::{b, c}, d}; // crate::e\nlet x = \"crate::f \\\" \"; crate::g();");
    let names: Vec<_> = named(&code).into_iter().collect();
    assert_eq!(names, ["a", "d", "g"], "in {code}");
    let code = stripped("let y = r#\"crate::h \" \"#; let z = '\"'; crate::i::j");
    let names: Vec<_> = named(&code).into_iter().collect();
    assert_eq!(names, ["i"], "in {code}");
}
