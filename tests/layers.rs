//! Keeps the architecture: which layer may import which, where `unsafe` may stand, who may read a
//! clock, and that each module says what it is.
//!
//! The checker reads tokens, not a syntax tree: comments and literals are blanked out, then each
//! path that starts with `crate::` or `super::` is resolved, in `use` trees as well as in the
//! middle of code. Code for tests only (`#[cfg(test)]`) is held to the rules about `unsafe` and to
//! no others.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each top-level module may import besides itself. `"link/"` stands for the module alone
/// (its traits and values) without its implementations, `"link"` for all of it.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("time", &["wire", "span"]),
    ("wire", &["time", "span"]),
    ("span", &["time", "wire"]),
    ("token", &["time", "flow/"]),
    ("flow", &["time", "wire", "span", "config", "token"]),
    ("config", &["time", "wire", "span", "flow"]),
    ("translate", &["time", "wire", "span", "flow", "config", "token"]),
    ("service", &["time", "wire", "span", "flow", "config"]),
    (
        "engine",
        &[
            "time",
            "wire",
            "span",
            "flow",
            "config",
            "token",
            "translate",
            "service",
            "link/",
            "host/",
            "log",
        ],
    ),
    ("sys", &["time", "wire", "span", "token", "flow/"]),
    ("log", &["time", "config", "sys"]),
    ("link", &["time", "wire", "span", "flow/", "config", "token", "sys", "log"]),
    ("host", &["time", "wire", "span", "flow", "config", "token", "sys", "log"]),
    ("sandbox", &["time", "config", "sys", "log"]),
    ("control", &["time", "config", "flow", "token", "sys", "log"]),
    ("pesto", &["config", "flow/", "sys", "sandbox"]),
    ("daemon", &["time", "config", "sys", "log"]),
    ("pasta", &["time", "wire", "config", "token", "sys", "log", "host"]),
    (
        "runtime",
        &[
            "time",
            "wire",
            "span",
            "flow",
            "config",
            "token",
            "translate",
            "service",
            "engine",
            "link",
            "host",
            "sys",
            "log",
            "sandbox",
            "daemon",
            "control",
            "pasta",
        ],
    ),
];

/// Layers that do no I/O, and what would let them; libc's constants would not.
const PURE: &[&str] = &["time", "wire", "span", "token", "flow", "config", "translate", "service"];
const IMPURE_PATHS: &[&[&str]] = &[
    &["libc"],
    &["nix"],
    &["std", "fs"],
    &["std", "os", "fd"],
    &["std", "os", "linux"],
    &["std", "os", "unix", "fs"],
    &["std", "os", "unix", "io"],
    &["std", "os", "unix", "net"],
    &["std", "os", "unix", "process"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["std", "thread"],
    &["std", "process"],
    &["std", "env"],
];

/// The only places for `unsafe`.
fn may_be_unsafe(file: &str) -> bool {
    file == "span.rs"
        || file.starts_with("sys/")
        || file == "link/vhost/memory.rs"
        || file == "link/vhost/ring.rs"
}

/// The only places that read a clock: the loop, which hands `now` down, and the log, whose lines
/// carry the time but decide nothing by it.
fn may_read_the_clock(file: &str) -> bool {
    file.starts_with("runtime/") || file == "log.rs"
}

// --- Reading source ---------------------------------------------------------------------------

/// `source` with comments, strings and characters blanked out; line breaks stay.
fn blank(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut after_word = false;
    while let Some(c) = rest.chars().next() {
        let opaque = opaque_len(rest, after_word);
        let len = opaque.unwrap_or_else(|| c.len_utf8());
        let (piece, tail) = rest.split_at(len);
        if opaque.is_some() {
            out.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            out.push_str(piece);
        }
        after_word = opaque.is_none() && (c.is_alphanumeric() || c == '_');
        rest = tail;
    }
    out
}

/// The length of the comment, string or character that `s` starts with.
fn opaque_len(s: &str, after_word: bool) -> Option<usize> {
    if s.starts_with("//") {
        return Some(s.find('\n').unwrap_or(s.len()));
    }
    if s.starts_with("/*") {
        return Some(block_comment_len(s));
    }
    if s.starts_with('"') {
        return Some(string_len(s));
    }
    if s.starts_with('\'') {
        return char_len(s);
    }
    if after_word {
        return None;
    }
    for prefix in ["br", "cr", "r", "b", "c"] {
        let Some(tail) = s.strip_prefix(prefix) else { continue };
        if prefix.ends_with('r') {
            if let Some(len) = raw_string_len(tail) {
                return Some(prefix.len() + len);
            }
        } else if tail.starts_with('"') {
            return Some(prefix.len() + string_len(tail));
        } else if prefix == "b" && tail.starts_with('\'') {
            return char_len(tail).map(|n| n + 1);
        }
    }
    None
}

fn block_comment_len(s: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < s.len() {
        if s.as_bytes()[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if s.as_bytes()[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    s.len()
}

fn string_len(s: &str) -> usize {
    let mut escaped = false;
    for (i, c) in s.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    s.len()
}

fn raw_string_len(s: &str) -> Option<usize> {
    let hashes = s.len() - s.trim_start_matches('#').len();
    s[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(s[hashes + 1..].find(&close).map_or(s.len(), |i| hashes + 1 + i + close.len()))
}

/// A character literal; `None` for a lifetime.
fn char_len(s: &str) -> Option<usize> {
    let mut chars = s.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first != '\\' {
        let (i, c) = chars.next()?;
        return (c == '\'').then_some(i + 1);
    }
    chars.next()?;
    chars.find(|(_, c)| *c == '\'').map(|(i, _)| i + 1)
}

/// A word or one character of punctuation (`::` counts as one), with its line.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

fn tokens(blanked: &str) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    for (i, text) in blanked.lines().enumerate() {
        let line = i + 1;
        let mut rest = text.trim_start();
        while let Some(c) = rest.chars().next() {
            let word =
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let len = match word {
                0 if rest.starts_with("::") => 2,
                0 => c.len_utf8(),
                n => n,
            };
            out.push(Token { text: rest[..len].to_owned(), line });
            rest = rest[len..].trim_start();
        }
    }
    out
}

fn starts_with(tokens: &[Token], words: &[&str]) -> bool {
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|(t, w)| t.text == *w)
}

/// The number of tokens from the start to the end of the bracket that `tokens[0]` opens.
fn bracket_len(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" | "[" | "(" => depth += 1,
            "}" | "]" | ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// The number of tokens of the item (attributes included) at the start.
fn item_len(tokens: &[Token]) -> usize {
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => {
                let end = at + bracket_len(&tokens[at..]);
                // A `use a::{b};` goes on after its brace.
                return end + usize::from(tokens.get(end).is_some_and(|t| t.text == ";"));
            }
            "(" | "[" => at += bracket_len(&tokens[at..]),
            _ => at += 1,
        }
    }
    at
}

/// Splits off what is compiled for tests only: the other tokens, and the names of modules that
/// are declared `#[cfg(test)] mod name;`.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    const CFG_TEST: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];
    const CFG_ALL_TEST: &[&str] = &["#", "[", "cfg", "(", "all", "(", "test"];
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if starts_with(rest, CFG_TEST) || starts_with(rest, CFG_ALL_TEST) {
            let item = &rest[..item_len(rest)];
            if let Some(i) = item.iter().position(|t| t.text == "mod")
                && let [name, end] = &item[i + 1..]
                && end.text == ";"
            {
                modules.push(name.text.clone());
            }
            at += item.len();
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    (kept, modules)
}

/// The paths of a (possibly braced) path tree at the start of `tokens`.
fn expand(tokens: &[Token], prefix: &[String], out: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    loop {
        match tokens.get(at).map(|t| t.text.as_str()) {
            Some("{") => {
                let len = bracket_len(&tokens[at..]);
                let inside = &tokens[at + 1..(at + len).saturating_sub(1).max(at + 1)];
                let mut i = 0;
                while i < inside.len() {
                    i += expand(&inside[i..], &path, out).max(1);
                    while inside.get(i).is_some_and(|t| t.text != ",") {
                        i += 1; // `as name`
                    }
                    i += 1;
                }
                return at + len;
            }
            Some("*") => at += 1,
            Some(word) if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push(word.to_owned());
                at += 1;
                if tokens.get(at).is_some_and(|t| t.text == "::") {
                    at += 1;
                    continue;
                }
            }
            _ => {}
        }
        out.push(path);
        return at;
    }
}

/// A path that the code of a module names, resolved from the crate's root: `Ours` below the
/// crate, `Foreign` for another crate's.
#[derive(Debug)]
struct Named {
    line: usize,
    ours: bool,
    path: Vec<String>,
}

/// All paths that `tokens`, the code of `module`, names.
fn named_paths(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let mut out = Vec::new();
    // Inline modules that we are in, with the depth of braces at which each ends.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    while at < tokens.len() {
        let token = &tokens[at];
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.pop_if(|(_, end)| *end == depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|t| t.text == "{") => {
                inline.push((tokens[at + 1].text.clone(), depth));
            }
            _ => {}
        }
        let begins = tokens.get(at + 1).is_some_and(|t| t.text == "::")
            && at.checked_sub(1).is_none_or(|i| tokens[i].text != "::");
        if !begins {
            at += 1;
            continue;
        }
        let here: Vec<String> =
            module.iter().chain(inline.iter().map(|(name, _)| name)).cloned().collect();
        let mut paths = Vec::new();
        let len = expand(&tokens[at..], &[], &mut paths);
        for path in paths {
            out.push(resolve(path, &here, token.line));
        }
        at += len.max(1);
    }
    out
}

fn resolve(path: Vec<String>, here: &[String], line: usize) -> Named {
    match path.first().map(String::as_str) {
        Some("crate") => Named { line, ours: true, path: path[1..].to_vec() },
        Some("self" | "super") => {
            let mut at = here.to_vec();
            let mut rest = path.into_iter().peekable();
            while let Some(word) = rest.next_if(|w| w == "super" || w == "self") {
                if word == "super" {
                    at.pop();
                }
            }
            at.extend(rest);
            Named { line, ours: true, path: at }
        }
        _ => Named { line, ours: false, path },
    }
}

// --- The rules --------------------------------------------------------------------------------

/// `link/vhost/ring.rs` is the module `link::vhost::ring`; `lib.rs` is the root.
fn module_of(file: &str) -> Vec<String> {
    let stem = file.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if stem == "lib" { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

/// A source tree: names below `src`, and texts.
type Tree = Vec<(String, String)>;

/// Modules (as paths) that exist for tests only.
fn test_modules(tree: &Tree) -> BTreeSet<Vec<String>> {
    let mut out = BTreeSet::new();
    for (file, text) in tree {
        for name in without_tests(&tokens(&blank(text))).1 {
            let mut path = module_of(file);
            path.push(name);
            out.insert(path);
        }
    }
    out
}

/// Folders and files directly below `link` or `host`: their implementations.
fn implementations(tree: &Tree) -> BTreeSet<Vec<String>> {
    tree.iter().map(|(file, _)| module_of(file)).filter(|m| m.len() > 1).collect()
}

/// Everything in `tree` that breaks a rule, as `file:line: reason`.
fn violations(tree: &Tree) -> Vec<String> {
    let tests = test_modules(tree);
    let implementations = implementations(tree);
    let mut out = Vec::new();
    for (file, text) in tree {
        let all = tokens(&blank(text));
        let module = module_of(file);
        check_unsafe(file, text, &all, &mut out);
        if (1..=module.len()).any(|n| tests.contains(&module[..n])) {
            continue;
        }
        check_doc(file, text, &mut out);
        let (code, _) = without_tests(&all);
        check_clock(file, &code, &mut out);
        for named in named_paths(&code, &module) {
            if let Some(reason) = import_fault(&module, &named, &implementations) {
                out.push(format!("{file}:{}: {reason}", named.line));
            }
        }
    }
    out
}

fn check_doc(file: &str, text: &str, out: &mut Vec<String>) {
    if !text.starts_with("//!") {
        out.push(format!("{file}:1: a module opens with `//!` and says what it is"));
    }
}

fn check_clock(file: &str, code: &[Token], out: &mut Vec<String>) {
    if may_read_the_clock(file) {
        return;
    }
    for (i, token) in code.iter().enumerate() {
        for clock in ["Instant", "SystemTime"] {
            if starts_with(&code[i..], &[clock, "::", "now"]) {
                out.push(format!("{file}:{}: only the runtime reads a clock", token.line));
            }
        }
    }
}

fn check_unsafe(file: &str, text: &str, all: &[Token], out: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    for (i, token) in all.iter().enumerate() {
        let word = token.text.as_str();
        if word != "unsafe" && word != "unsafe_code" {
            continue;
        }
        let here = format!("{file}:{}", token.line);
        if !may_be_unsafe(file) {
            out.push(format!("{here}: no `{word}` here; use the safe functions of span or sys"));
        }
        let block = matches!(all.get(i + 1).map(|t| t.text.as_str()), Some("{" | "impl"));
        if word == "unsafe" && block && !has_safety_comment(&lines, token.line) {
            out.push(format!("{here}: an unsafe block without a `// SAFETY:` comment"));
        }
    }
}

/// Whether the comment above the statement at `line` (from 1) says why it is safe.
fn has_safety_comment(lines: &[&str], line: usize) -> bool {
    let mut above = lines[..line].iter().rev().map(|l| l.trim());
    let here = above.next().unwrap_or_default();
    if here.contains("// SAFETY:") {
        return true;
    }
    // Skip to the start of the statement, then read the comment above it.
    let mut in_comment = false;
    for text in above {
        if text.starts_with("//") {
            in_comment = true;
            if text.starts_with("// SAFETY:") {
                return true;
            }
        } else if in_comment || text.is_empty() || text.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

/// Why the code of `module` may not name this path; `None` when it may.
fn import_fault(
    module: &[String],
    named: &Named,
    implementations: &BTreeSet<Vec<String>>,
) -> Option<String> {
    let from = module.first()?.as_str();
    let path = named.path.join("::");
    if from == "bin" {
        let fine =
            named.path.first().is_none_or(|p| p != "passt") || path.starts_with("passt::app");
        return (!fine).then(|| format!("a program calls passt::app only, not {path}"));
    }
    if !named.ours {
        let constant = |word: &String| !word.contains(|c: char| c.is_lowercase());
        let impure = PURE.contains(&from)
            && !(named.path.first().is_some_and(|w| w == "libc")
                && named.path.last().is_some_and(constant))
            && IMPURE_PATHS.iter().any(|bad| {
                named.path.len() >= bad.len() && named.path.iter().zip(*bad).all(|(a, b)| a == b)
            });
        return impure.then(|| format!("{from} does no I/O and may not name {path}"));
    }
    let to = named.path.first()?.as_str();
    if from == to || from == "app" {
        return None;
    }
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == from) else {
        return Some(format!("{from} has no place in the layers: give it one in tests/layers.rs"));
    };
    if allowed.contains(&to) {
        return None;
    }
    if allowed.contains(&format!("{to}/").as_str()) {
        let inner = named.path.len() > 1 && implementations.contains(&named.path[..2]);
        return inner.then(|| format!("{from} may import the traits of {to}, not {path}"));
    }
    Some(format!("{from} may not import {path}"))
}

// --- The tree, and the checker's own tests ------------------------------------------------------

fn read_tree(root: &Path) -> Tree {
    let mut out = Tree::new();
    let mut folders = vec![PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src can be listed") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).expect("below src").display().to_string();
                out.push((name, fs::read_to_string(&path).expect("a source file can be read")));
            }
        }
    }
    out.sort();
    out
}

#[test]
fn the_source_keeps_the_layers_and_the_places_of_unsafe() {
    let tree = read_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(tree.len() > 20, "the source tree was not found");
    let found = violations(&tree);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn every_top_level_module_has_a_place_in_the_layers() {
    let tree = read_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for (file, _) in tree {
        let Some(top) = module_of(&file).first().cloned() else { continue };
        let known = top == "app" || top == "bin" || MAY_IMPORT.iter().any(|(name, _)| *name == top);
        assert!(known, "{file}: no place in the layers");
    }
}

/// The violations of one file in a tree that also has a few others.
#[track_caller]
fn found_in(file: &str, body: &str) -> Vec<String> {
    let tree = vec![
        ("link/mod.rs".to_owned(), "//! Seam.\n".to_owned()),
        ("link/vhost/mod.rs".to_owned(), "//! Device.\n".to_owned()),
        ("host/sockets.rs".to_owned(), "//! Sockets.\n".to_owned()),
        (file.to_owned(), format!("//! A module.\n{body}")),
    ];
    violations(&tree)
}

#[test]
fn imports_against_the_order_are_found() {
    let table: &[(&str, &str)] = &[
        ("wire/tcp.rs", "use crate::flow::Endpoint;"),
        ("wire/tcp.rs", "use super::super::flow::Endpoint;"),
        ("wire/tcp.rs", "use crate::{span::Span, link};"),
        ("flow/table.rs", "use crate::translate::tcp::Conn;"),
        ("translate/udp.rs", "fn f(x: &crate::engine::Engine) {}"),
        ("translate/udp.rs", "use crate::host::Host;"),
        ("translate/udp.rs", "use std::net::UdpSocket;"),
        ("translate/udp.rs", "use std::{fmt, os::fd::OwnedFd};"),
        ("wire/tcp.rs", "fn f() { let n = libc::getpid(); }"),
        ("service/arp.rs", "use crate::link::Sink;"),
        ("engine/tcp.rs", "use crate::link::vhost::Device;"),
        ("engine/tcp.rs", "use crate::link::{Sink, vhost::{Device}};"),
        ("engine/tcp.rs", "use crate::host::sockets;"),
        ("engine/tcp.rs", "fn f() { crate::host::sockets::connect(); }"),
        ("engine/tcp.rs", "mod inner { use super::super::super::sys::epoll::Epoll; }"),
        ("engine/tcp.rs", "use crate::runtime::Worker;"),
        ("link/vhost/ring.rs", "use crate::engine::Engine;"),
        ("link/vhost/ring.rs", "use crate::translate::tcp;"),
        ("host/listen.rs", "use crate::{time::Instant, engine as e};"),
        ("link/tap.rs", "use crate::host::Host;"),
        ("sandbox/mod.rs", "use crate::runtime::Worker;"),
        ("daemon.rs", "use crate::app;"),
        ("runtime/worker.rs", "use crate::app;"),
        ("newcomer.rs", "use crate::wire::MacAddr;"),
        ("bin/passt.rs", "fn main() { passt::runtime::run() }"),
        ("wire/tcp.rs", "#[cfg(test)]\nuse crate::wire::x;\nuse crate::engine;"),
        ("wire/tcp.rs", "#[cfg(feature = \"x\")]\nuse crate::engine::x;"),
    ];
    for (file, body) in table {
        let found = found_in(file, body);
        assert_eq!(found.len(), 1, "{file}: {body}: {found:?}");
    }
}

#[test]
fn imports_along_the_order_are_fine() {
    let table: &[(&str, &str)] = &[
        ("wire/tcp.rs", "use crate::span::Span;\nuse super::checksum;"),
        ("config/ports.rs", "const LONGEST: usize = libc::IFNAMSIZ - 1;"),
        (
            "wire/tcp.rs",
            "// use crate::engine::Engine;\n/* crate::engine::x /* crate::app::y */ */",
        ),
        ("wire/tcp.rs", "const A: &str = \"crate::engine::x\"; const B: char = '\"';"),
        ("wire/tcp.rs", "const A: &str = r#\"crate::\"engine::x\"#; fn f<'a>(b: &'a u8) {}"),
        ("wire/tcp.rs", "#[cfg(test)]\nmod tests {\n use crate::engine::Engine;\n}"),
        ("engine/tcp.rs", "use crate::link::{Offload, Sink};\nuse crate::host::Host;"),
        ("engine/tcp.rs", "fn f() -> crate::link::Offload { crate::link::Offload::NONE }"),
        ("link/vhost/ring.rs", "use crate::link::Sink;\nuse super::queue::Queue;"),
        ("runtime/worker.rs", "use crate::engine::Engine;\nuse crate::link::vhost::Device;"),
        ("app.rs", "use crate::runtime;\nuse crate::sandbox::Started;"),
        ("bin/passt.rs", "fn main() { passt::app::main(passt::app::Program::Passt) }"),
        ("engine/tcp.rs", "mod inner { use super::super::ingress; use super::Tcp; }"),
    ];
    for (file, body) in table {
        assert_eq!(found_in(file, body), Vec::<String>::new(), "{file}: {body}");
    }
}

#[test]
fn a_module_declared_for_tests_only_may_import_anything() {
    let tree = vec![
        ("engine/mod.rs".to_owned(), "//! E.\n#[cfg(test)]\nmod netsim;\n".to_owned()),
        ("engine/netsim.rs".to_owned(), "//! N.\nuse crate::runtime::Worker;\n".to_owned()),
        ("engine/netsim/far.rs".to_owned(), "//! F.\nuse crate::runtime::Worker;\n".to_owned()),
        ("engine/tcp.rs".to_owned(), "//! T.\nuse crate::runtime::Worker;\n".to_owned()),
    ];
    let found = violations(&tree);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("engine/tcp.rs:2:"), "{found:?}");
}

#[test]
fn unsafe_outside_its_places_or_without_a_reason_is_found() {
    let documented = "fn f() {\n    // SAFETY: no pointers.\n    unsafe { g() };\n}";
    let split = "fn f() {\n    // SAFETY: no pointers\n    // at all.\n    let x =\n        \
                 check(unsafe { g() });\n}";
    let bare = "fn f() {\n    unsafe { g() };\n}";
    let stale = "fn f() {\n    // SAFETY: for the other.\n    h();\n    unsafe { g() };\n}";
    let lint = "#![allow(unsafe_code, reason = \"here\")]";
    let table: &[(&str, &str, usize)] = &[
        ("sys/process.rs", documented, 0),
        ("sys/process.rs", split, 0),
        ("sys/process.rs", lint, 0),
        ("span.rs", documented, 0),
        ("link/vhost/memory.rs", documented, 0),
        ("link/vhost/ring.rs", documented, 0),
        ("sys/process.rs", bare, 1),
        ("sys/process.rs", stale, 1),
        ("sys/process.rs", "// SAFETY: Sync.\nunsafe impl Send for X {}", 0),
        ("sys/process.rs", "unsafe impl Send for X {}", 1),
        ("sys/process.rs", "pub unsafe fn f() {}", 0),
        ("link/vhost/queue.rs", documented, 1),
        ("engine/tcp.rs", documented, 1),
        ("engine/tcp.rs", bare, 2),
        ("engine/tcp.rs", lint, 1),
        ("engine/tcp.rs", "#[cfg(test)]\nmod tests {\n    #![allow(unsafe_code)]\n}", 1),
        ("engine/tcp.rs", "// unsafe { } in words\nconst A: &str = \"unsafe {\";", 0),
    ];
    for (file, body, count) in table {
        let found = found_in(file, body);
        assert_eq!(found.len(), *count, "{file}: {body}: {found:?}");
    }
}

#[test]
fn a_clock_outside_the_runtime_and_a_module_without_words_are_found() {
    let clock = "fn f() { let t = std::time::Instant::now(); }";
    assert_eq!(found_in("engine/tcp.rs", clock).len(), 1);
    assert_eq!(found_in("link/capture.rs", "fn f() { SystemTime::now(); }").len(), 1);
    assert_eq!(found_in("runtime/worker.rs", clock), Vec::<String>::new());
    assert_eq!(found_in("log.rs", clock), Vec::<String>::new());
    let silent = vec![("wire/tcp.rs".to_owned(), "use std::fmt;\n".to_owned())];
    assert_eq!(violations(&silent).len(), 1);
}
