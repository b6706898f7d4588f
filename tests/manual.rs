//! Manual page and shell completions are what the table of options gives, and complete.
//!
//! `PASST_WRITE_MANUAL=1 cargo test --test manual` writes them; the rest of the manual page is
//! `docs/man/passt.in`.

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use passt::config::options::{Program, documented};
use std::path::{Path, PathBuf};
use std::process::Command as Passt;
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

fn page(program: Program, by_hand: &str) -> String {
    // Second names are in no list of the generator's.
    let command = documented(program).mut_args(|arg| match names(&arg).as_slice() {
        [_, others @ ..] if !others.is_empty() => {
            let help =
                format!("{} (also {})", arg.get_help().expect("is there"), others.join(", "));
            arg.help(help)
        }
        _ => arg,
    });
    let man = Man::new(command).title(program.name().to_uppercase()).manual("User Commands");
    let options = section(|w| man.render_options_section(w), ".SH ");
    let options: Vec<_> = options.lines().map(as_part).collect();
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

fn completion(program: Program, shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut documented(program), program.name(), &mut bytes);
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

#[test]
fn the_manual_page_is_what_the_options_give() {
    let by_hand = fs::read_to_string(docs("man/passt.in")).expect("is there");
    let text = page(Program::Passt, &by_hand);
    names_all("the manual page", &documented(Program::Passt), &text);
    compare("man/passt.1", &text);
}

#[test]
fn the_manual_page_speaks_of_options_that_exist() {
    let by_hand = fs::read_to_string(docs("man/passt.in")).expect("is there").replace("\\-", "-");
    let command = documented(Program::Passt);
    let known: Vec<_> = command.get_arguments().flat_map(names).collect();
    let examples = by_hand.split(|c: char| c.is_whitespace() || c == '\\');
    let spoken_of: Vec<_> = examples.filter(|word| word.starts_with("--")).collect();
    assert!(spoken_of.len() > 10, "{spoken_of:?}");
    for word in spoken_of {
        let word = word.trim_end_matches(['.', ',', ':', ';']);
        assert!(known.iter().any(|name| name == word), "{word}");
    }
}

#[test]
fn completions_are_what_the_options_give() {
    for (shell, name) in
        [(Shell::Bash, "passt.bash"), (Shell::Zsh, "_passt"), (Shell::Fish, "passt.fish")]
    {
        let text = completion(Program::Passt, shell);
        let names = text.replace(" -l ", " --");
        names_all(name, &documented(Program::Passt), &names);
        assert!(!names.contains("--netns-only"), "{name} has options of another program");
        compare(&format!("completions/{name}"), &text);
    }
}

#[test]
fn the_help_text_names_every_option_on_standard_output_alone() {
    let output = Passt::new(env!("CARGO_BIN_EXE_passt")).arg("--help").output().expect("starts");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    let text = String::from_utf8(output.stdout).expect("is text");
    names_all("the help text", &documented(Program::Passt), &text);
}
