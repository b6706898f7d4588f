//! The command line of `pesto`: one table of options, and [`Typed`]. Habits are those of the other
//! programs ([`crate::config::options`]); here the order of options is the order of acts.

use crate::config::options::{Error, complaint, getopt_order, version_of};
use crate::config::rules_wire::{HOST, SPLICE};
use crate::flow::Protocol;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The program's name.
const NAME: &str = "pesto";

/// The argument that is no option.
const PATH: &str = "PATH";

/// One act on the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `--add`: from here on, what is specified is added.
    Add,
    /// `--delete`: from here on, what is specified is deleted.
    Delete,
    /// `--clear`: the table of this name is emptied.
    Clear(String),
    /// A port option.
    Ports {
        /// The table that it is for.
        pif: u8,
        /// TCP or UDP.
        protocol: Protocol,
        /// The specifier.
        spec: String,
    },
}

/// The command line as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// `--debug`.
    pub debug: bool,
    /// `--show`.
    pub show: bool,
    /// What to do to the tables, in order.
    pub steps: Vec<Step>,
    /// The control socket.
    pub path: PathBuf,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Print this on standard output and end with status 0.
    Print(String),
    /// Run.
    Run(Typed),
}

/// What an option does.
#[derive(Clone, Copy)]
enum Action {
    Flag(fn(&mut Typed)),
    Text(&'static str, fn(String) -> Step),
    Print(fn() -> String),
}

struct Opt {
    short: Option<char>,
    long: &'static str,
    action: Action,
    help: &'static str,
}

const fn ports(pif: u8, protocol: Protocol, spec: String) -> Step {
    Step::Ports { pif, protocol, spec }
}

const OPTIONS: &[Opt] = &[
    Opt {
        short: Some('h'),
        long: "help",
        action: Action::Print(help),
        help: "Show this text and exit",
    },
    Opt {
        short: None,
        long: "version",
        action: Action::Print(version),
        help: "Show the version and exit",
    },
    Opt {
        short: Some('d'),
        long: "debug",
        action: Action::Flag(|t| t.debug = true),
        help: "Say on standard error what is exchanged",
    },
    Opt {
        short: Some('s'),
        long: "show",
        action: Action::Flag(|t| t.show = true),
        help: "Print the rules before and after a change",
    },
    Opt {
        short: Some('A'),
        long: "add",
        action: Action::Flag(|t| t.steps.push(Step::Add)),
        help: "Add the ports that follow; without it the first ones for a table replace its rules",
    },
    Opt {
        short: Some('D'),
        long: "delete",
        action: Action::Flag(|t| t.steps.push(Step::Delete)),
        help: "Delete the ports that follow; each must be a rule, with all that belongs to it",
    },
    Opt {
        short: Some('C'),
        long: "clear",
        action: Action::Text("PIF", Step::Clear),
        help: "Delete all rules of a table: HOST or SPLICE",
    },
    Opt {
        short: Some('t'),
        long: "tcp-ports",
        action: Action::Text("SPEC", |spec| ports(HOST, Protocol::Tcp, spec)),
        help: "TCP ports to forward to the guest or namespace, as passt and pasta take them",
    },
    Opt {
        short: Some('u'),
        long: "udp-ports",
        action: Action::Text("SPEC", |spec| ports(HOST, Protocol::Udp, spec)),
        help: "UDP ports to forward to the guest or namespace",
    },
    Opt {
        short: Some('T'),
        long: "tcp-ns",
        action: Action::Text("SPEC", |spec| ports(SPLICE, Protocol::Tcp, spec)),
        help: "TCP ports to forward from the namespace to the host; pasta only",
    },
    Opt {
        short: Some('U'),
        long: "udp-ns",
        action: Action::Text("SPEC", |spec| ports(SPLICE, Protocol::Udp, spec)),
        help: "UDP ports to forward from the namespace to the host; pasta only",
    },
];

/// The options for clap, manual page and completions.
pub fn command() -> Command {
    Command::new(NAME)
        .about("change the forwarded ports of a running passt or pasta")
        .override_usage("pesto [OPTION]... PATH")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args(OPTIONS.iter().map(argument))
        .arg(
            Arg::new(PATH)
                .num_args(0..)
                .value_parser(value_parser!(OsString))
                .value_hint(ValueHint::FilePath)
                .help("Control socket, given to passt or pasta as --conf-path"),
        )
}

fn argument(option: &Opt) -> Arg {
    let mut arg = Arg::new(option.long)
        .long(option.long)
        .help(option.help)
        .value_parser(value_parser!(OsString))
        .action(ArgAction::Append);
    if let Some(short) = option.short {
        arg = arg.short(short);
    }
    match option.action {
        Action::Text(name, _) => {
            arg.value_name(name).num_args(1).allow_hyphen_values(true).value_hint(ValueHint::Other)
        }
        // A value that nobody sees: clap then keeps the place of every occurrence.
        Action::Flag(_) | Action::Print(_) => arg.num_args(0).default_missing_value(""),
    }
}

fn help() -> String {
    command().render_help().to_string()
}

fn version() -> String {
    version_of(NAME)
}

/// Reads a command line, `args` being what follows the name `argv0` of the program.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(argv0: &str, args: &[OsString]) -> Result<Request, Error> {
    let matches = |args: &[OsString]| command().no_binary_name(true).try_get_matches_from(args);
    let error = match matches(args) {
        Ok(found) => return apply(&found),
        Err(error) => error,
    };
    // `--version` acts at once, whatever stands behind it.
    for n in 0..args.len() {
        let start = args.get(..=n).and_then(|start| matches(start).ok());
        if let Some(text) = start.and_then(|found| printed(&found)) {
            return Ok(Request::Print(text));
        }
    }
    let names = OPTIONS.iter().map(|option| option.long);
    Err(Error { message: complaint(argv0, args, &error, names), usage: Some(help()) })
}

/// Options in the order in which they were typed.
fn in_order(found: &ArgMatches) -> impl Iterator<Item = (&'static Opt, &OsStr)> {
    let typed = getopt_order(found, OPTIONS.iter().map(|option| option.long));
    typed.into_iter().filter_map(|(name, value)| {
        Some((OPTIONS.iter().find(|option| option.long == name)?, value))
    })
}

/// What the first option prints that prints something.
fn printed(found: &ArgMatches) -> Option<String> {
    in_order(found).find_map(|(option, _)| match option.action {
        Action::Print(text) => Some(text()),
        _ => None,
    })
}

fn apply(found: &ArgMatches) -> Result<Request, Error> {
    let plain = |message| Error { message, usage: None };
    let mut typed = Typed::default();
    for (option, value) in in_order(found) {
        match option.action {
            Action::Print(text) => return Ok(Request::Print(text())),
            Action::Flag(set) => set(&mut typed),
            Action::Text(_, step) => {
                let value = value.to_str();
                let value =
                    value.ok_or_else(|| plain(format!("Invalid --{}: not UTF-8", option.long)))?;
                typed.steps.push(step(value.to_owned()));
            }
        }
    }
    let mut words = found.get_raw(PATH).into_iter().flatten();
    match (words.next(), words.next()) {
        (_, Some(extra)) => {
            Err(plain(format!("Extra non-option argument: {}", extra.to_string_lossy())))
        }
        (Some(path), None) if !path.is_empty() => {
            typed.path = path.into();
            Ok(Request::Run(typed))
        }
        _ => Err(Error {
            message: "Missing path of a control socket".to_owned(),
            usage: Some(help()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Typed {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        match parse("pesto", &args) {
            Ok(Request::Run(typed)) => typed,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> Error {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        parse("pesto", &args).unwrap_err()
    }

    #[test]
    fn options_act_in_the_order_in_which_they_are_typed() {
        let typed = run("-t 22 -A -u53 --tcp-ns=80 -C HOST --del -U 5353 -Ct sock");
        assert_eq!(
            typed.steps,
            [
                ports(HOST, Protocol::Tcp, "22".to_owned()),
                Step::Add,
                ports(HOST, Protocol::Udp, "53".to_owned()),
                ports(SPLICE, Protocol::Tcp, "80".to_owned()),
                Step::Clear("HOST".to_owned()),
                Step::Delete,
                ports(SPLICE, Protocol::Udp, "5353".to_owned()),
                Step::Clear("t".to_owned()),
            ]
        );
        assert_eq!(typed.path, PathBuf::from("sock"));
        assert!(!typed.debug && !typed.show);
        assert!(run("-ds a").debug && run("-ds a").show);
    }

    #[test]
    fn the_path_may_stand_anywhere_but_must_stand_once() {
        assert_eq!(run("a").path, run("a -s").path);
        assert_eq!(run("-t 1 a -t 2").steps.len(), 2);
        assert_eq!(run("-- -a").path, PathBuf::from("-a"));
        assert_eq!(refused("a b").message, "Extra non-option argument: b");
        assert_eq!(refused("-s").message, "Missing path of a control socket");
        assert_eq!(parse("p", &[OsString::new()]).unwrap_err().message, refused("").message);
    }

    #[test]
    fn unknown_options_are_named_as_getopt_does() {
        for (line, message) in [
            ("--bogus a", "pesto: unrecognized option '--bogus'"),
            ("-z a", "pesto: invalid option -- 'z'"),
            ("a -t", "pesto: option '--tcp-ports' requires an argument"),
            ("--add=1 a", "pesto: option '--add' doesn't allow an argument"),
            (
                "--tcp 22 a",
                "pesto: option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'",
            ),
        ] {
            let error = refused(line);
            assert_eq!(error.message, message);
            assert!(error.usage.unwrap().contains("pesto [OPTION]... PATH"));
        }
    }

    #[test]
    fn version_and_help_act_at_once() {
        for line in ["--version", "-s --version --bogus", "-A --vers a b c"] {
            let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
            let Ok(Request::Print(text)) = parse("pesto", &args) else { panic!("{line}") };
            assert!(text.starts_with("pesto "), "{text}");
        }
        refused("--bogus --version");
        let Ok(Request::Print(text)) = parse("pesto", &["-h".into()]) else { panic!("no help") };
        for option in OPTIONS {
            assert!(text.contains(&format!("--{}", option.long)), "{text}");
        }
    }
}
