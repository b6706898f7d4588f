//! Manual page and shell completions are what the table of options gives, and complete.
//!
//! `PASST_WRITE_MANUAL=1 cargo test --test manual` writes them; the rest of the manual page is
//! `docs/man/passt.in` and `pasta.in`.

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use passt::config::options::{Program, documented};
use passt::pesto::options::command as pesto;
use std::path::{Path, PathBuf};
use std::process::Command as Started;
use std::{env, fs};

const WRITE: &str = "PASST_WRITE_MANUAL";

/// Where the generated options go in the hand-written part.
const PLACE: &str = ".\\\" OPTIONS\n";

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Checks that a generated file is the one that is there, or makes it so.
#[track_caller]
fn compare(name: &str, text: &str) {
    let path = docs(name);
    if env::var_os(WRITE).is_some() {
        fs::create_dir_all(path.parent().expect("is in a folder")).expect("is ours");
        fs::write(&path, text).expect("is ours");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    // Not `assert_eq!`: a page of text helps nobody.
    assert!(
        there == text,
        "{} is not what the options give: write it with {WRITE}=1 cargo test --test manual",
        path.display()
    );
}

/// One section as text, from `start` on: each of them has the same preamble.
fn section(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>, start: &str) -> String {
    let mut bytes = Vec::new();
    render(&mut bytes).expect("a vector takes everything");
    let text = String::from_utf8(bytes).expect("is text");
    let at = text.find(start).expect("the section has its heading");
    text[at..].to_owned()
}

/// `.SH VIRTUAL MACHINE` as `.SS Virtual machine`: one section of options with parts.
fn as_part(line: &str) -> String {
    let Some(heading) = line.strip_prefix(".SH ") else { return line.to_owned() };
    let mut chars = heading.trim_matches('"').chars();
    let first: String = chars.next().into_iter().collect();
    format!(".SS \"{first}{}\"", chars.as_str().to_lowercase())
}

fn page(command: &Command, by_hand: &str) -> String {
    let title = command.get_name().to_uppercase();
    // Second names are in no list of the generator's.
    let command = command.clone().version(env!("CARGO_PKG_VERSION")).mut_args(|arg| {
        match names(&arg).as_slice() {
            [_, others @ ..] if !others.is_empty() => {
                let help =
                    format!("{} (also {})", arg.get_help().expect("is there"), others.join(", "));
                arg.help(help)
            }
            _ => arg,
        }
    });
    let man = Man::new(command).title(title).manual("User Commands");
    let options = section(|w| man.render_options_section(w), ".SH ");
    let options = options.lines().map(as_part);
    // The only part of those that have one needs no heading.
    let options: Vec<_> = options.filter(|line| line != ".SS \"Options\"").collect();
    let (before, after) = by_hand.split_once(PLACE).expect("says where the options go");
    [
        ".\\\" Made of the options and of docs/man by tests/manual.rs: edit those.\n".to_owned(),
        section(|w| man.render_title(w), ""),
        section(|w| man.render_name_section(w), ".SH "),
        section(|w| man.render_synopsis_section(w), ".SH "),
        before.to_owned(),
        format!(".SH OPTIONS\n{}\n", options.join("\n")),
        after.to_owned(),
    ]
    .concat()
}

/// All long names of an option, with their dashes; the first one is the main one.
fn names(arg: &Arg) -> Vec<String> {
    let all = arg.get_long_and_visible_aliases().unwrap_or_default();
    all.iter().map(|name| format!("--{name}")).collect()
}

fn completion(command: &Command, shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut command.clone(), command.get_name(), &mut bytes);
    let text = String::from_utf8(bytes).expect("is text");
    // No blanks at the ends of lines in files of ours.
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[track_caller]
fn names_all(what: &str, command: &Command, text: &str) {
    let plain = text.replace("\\-", "-");
    for name in command.get_arguments().flat_map(names) {
        assert!(plain.contains(&name), "{what} does not know {name}");
    }
}

fn programs() -> [Command; 3] {
    [documented(Program::Passt), documented(Program::Pasta), pesto()]
}

fn by_hand(command: &Command) -> String {
    fs::read_to_string(docs(&format!("man/{}.in", command.get_name()))).expect("is there")
}

#[test]
fn manual_pages_are_what_the_options_give() {
    for command in programs() {
        let text = page(&command, &by_hand(&command));
        names_all("the manual page", &command, &text);
        compare(&format!("man/{}.1", command.get_name()), &text);
    }
}

#[test]
fn manual_pages_speak_of_options_that_exist() {
    for command in programs() {
        let by_hand = by_hand(&command).replace("\\-", "-");
        let known: Vec<_> = command.get_arguments().flat_map(names).collect();
        let examples = by_hand.split(|c: char| c.is_whitespace() || c == '\\');
        let spoken_of: Vec<_> = examples.filter(|word| word.starts_with("--")).collect();
        assert!(spoken_of.len() > known.len() / 4, "{spoken_of:?}");
        for word in spoken_of.into_iter().filter(|word| *word != "--") {
            let word = word.trim_end_matches(['.', ',', ':', ';']);
            let of_a_daemon = command.get_name() == "pesto" && word == "--conf-path";
            assert!(of_a_daemon || known.iter().any(|name| name == word), "{word}");
        }
    }
}

#[test]
fn completions_are_what_the_options_give() {
    for command in programs() {
        let name = command.get_name();
        for (shell, file) in [
            (Shell::Bash, format!("{name}.bash")),
            (Shell::Zsh, format!("_{name}")),
            (Shell::Fish, format!("{name}.fish")),
        ] {
            let text = completion(&command, shell);
            let names = text.replace(" -l ", " --");
            names_all(&file, &command, &names);
            let of_one = ["--one-off", "--netns-only", "--delete"].map(|name| names.contains(name));
            assert_eq!(of_one, ["passt", "pasta", "pesto"].map(|other| name == other), "{file}");
            compare(&format!("completions/{file}"), &text);
        }
    }
}

#[test]
fn help_texts_name_every_option_on_standard_output_alone() {
    let paths =
        [env!("CARGO_BIN_EXE_passt"), env!("CARGO_BIN_EXE_pasta"), env!("CARGO_BIN_EXE_pesto")];
    for (command, path) in programs().into_iter().zip(paths) {
        let output = Started::new(path).arg("--help").output().expect("starts");
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
        let text = String::from_utf8(output.stdout).expect("is text");
        names_all("the help text", &command, &text);
    }
}
