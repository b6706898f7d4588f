//! The configurations in `qemu-configs`: those that can run here run, the others are well-formed,
//! and what their programs make of them is what `passt` takes. Needs root.

mod common;

use common::guest::cloud_kernel;
use common::net::{FAR4, FAR6, Lab, TempDir, need};
use common::pasta::{Place, Who, ends};
use passt::config::options::{Program, Request, parse};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PASST: &str = env!("CARGO_BIN_EXE_passt");

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-configs").join(name)
}

/// What a program prints that must succeed.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("is text")
}

/// Waits until the process in a PID file has ended.
#[track_caller]
fn expect_end(file: &Path) {
    let pid = fs::read_to_string(file).expect("it had started");
    assert!(ends(pid.trim().parse().expect("is a number")), "passt did not end with its client");
}

/// The script boots a real guest, which gets its lease and reaches the far end.
#[test]
fn the_vhost_user_script_boots_a_machine_with_a_network() {
    need("qemu-system-x86_64", "qemu-system-x86");
    let lab = Lab::new();
    let (image, kernel) = (lab.dir.join("image"), cloud_kernel());
    let release = kernel.file_name().unwrap_or_default().to_string_lossy();
    let release = release.trim_start_matches("vmlinuz-");
    output(Command::new(file("lib/initramfs")).arg(&image).arg(release));
    let pid = lab.dir.join("pid");
    let mut machine = lab
        .host
        .command(file("qemu-vhost-user"))
        .args(["-accel", "tcg", "-nodefaults", "-display", "none"])
        .args([
            "-chardev",
            "stdio,id=obey,signal=off",
            "-serial",
            "null",
            "-serial",
            "chardev:obey",
        ])
        .arg("-kernel")
        .arg(&kernel)
        .arg("-initrd")
        .arg(&image)
        .args(["-append", "console=ttyS0 quiet panic=-1 obey=ttyS1"])
        .env("PASST", format!("{PASST} -D none -P {}", pid.display()))
        .env("MEMORY", "512M")
        .env("DEVICE", "virtio-net-pci,vectors=0,romfile=")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = machine.stdin.take().expect("is piped");
    let mut lines = BufReader::new(machine.stdout.take().expect("is piped")).lines();
    let mut until = |end: &str| {
        let mut said = String::new();
        for line in lines.by_ref().map_while(Result::ok) {
            if line.trim_end() == end {
                return said;
            }
            said.push_str(&line);
            said.push('\n');
        }
        panic!("no {end} after:\n{said}");
    };
    until(":ready");
    let script = format!("guest-up && busybox ping -c 1 {FAR4} && busybox ping -c 1 {FAR6}\n");
    input.write_all(script.as_bytes()).expect("it reads");
    let said = until(":0");
    assert_eq!(said.matches(", 0% packet loss").count(), 2, "{said}");
    // It cannot be rebooted: the emulator ends.
    input.write_all(b"busybox poweroff -f\n").expect("it reads");
    assert!(machine.wait().expect("is ours").success());
    expect_end(&pid);
}

/// A program that only shows with which words it was started, and whether the socket is there.
fn stand_in(folder: &TempDir) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("stand-in");
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\"\nfor word; do socket=${word##*socket=}\n\
        [ \"$socket\" = \"$word\" ] || [ -S \"$socket\" ] || exit 9; done\n";
    fs::write(&path, script).expect("there is room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("is ours");
    path
}

#[test]
fn the_cloud_hypervisor_script_hands_over_a_socket_that_is_ready() {
    let folder = TempDir::new();
    let pid = folder.join("pid");
    let said = output(
        Command::new(file("cloud-hypervisor"))
            .args(["--cpus", "boot=2"])
            .env("PASST", format!("{PASST} -D none -P {}", pid.display()))
            .env("CLOUD_HYPERVISOR", stand_in(&folder)),
    );
    let words: Vec<_> = said.lines().collect();
    assert_eq!(words[..3], ["--memory", "size=1G,shared=on", "--net"]);
    assert!(words[3].starts_with("vhost_user=true,socket=/"), "{said}");
    assert_eq!(words[4..], ["--cpus", "boot=2"]);
    // Nobody has connected: it waits, and is not ours to leave.
    let pid: i32 = fs::read_to_string(pid).unwrap().trim().parse().expect("is a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM)
        .expect("it lives");
    assert!(ends(pid));
}

/// QEMU's names for options of passt's, and ours.
const QEMU_NAMES: &[(&str, &str)] =
    &[("quiet", "--quiet"), ("tcp-ports", "--tcp-ports"), ("param", "")];

#[test]
fn what_qemu_10_1_is_told_becomes_options_that_exist() {
    need("python3", "python3");
    let folder = TempDir::new();
    let said = output(
        Command::new(file("qemu-netdev-passt")).env("QEMU", stand_in(&folder)).env("PASST", PASST),
    );
    let netdev = said.strip_prefix("-netdev\n").expect("comes first");
    let (json, rest) = netdev.split_once("}\n").expect("is an object");
    assert_eq!(rest, "-device\nvirtio-net-pci,netdev=net0\n");
    // One line `KEY VALUE` each; lists as QEMU hands them over.
    const READ: &str = "import json, sys
for key, value in json.load(sys.stdin).items():
    words = [v['str'] for v in value] if isinstance(value, list) else [value]
    print(key, ','.join(map(str, words)))";
    let mut python = Command::new("python3");
    let mut python = python
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = python.stdin.take().expect("is piped");
    input.write_all(format!("{json}}}").as_bytes()).expect("it reads");
    drop(input);
    let read = python.wait_with_output().expect("ends");
    assert!(read.status.success(), "{json}");
    let read = String::from_utf8(read.stdout).expect("is text");
    let mut words = vec!["--fd=3".to_owned()];
    for line in read.lines() {
        let (key, value) = line.split_once(' ').expect("two words");
        match key {
            "type" => assert_eq!(value, "passt"),
            "id" => assert_eq!(value, "net0"),
            "path" => assert_eq!(value, PASST),
            "quiet" => words.push("--quiet".into()),
            "param" => words.extend(value.split(',').map(str::to_owned)),
            _ => {
                let ours = QEMU_NAMES.iter().find(|(name, _)| *name == key).expect(key).1;
                words.extend([ours.to_owned(), value.to_owned()]);
            }
        }
    }
    are_options(PASST, &words);
}

/// The program knows these options and their values.
#[track_caller]
fn are_options<W: AsRef<OsStr>>(program: &str, words: &[W]) {
    output(Command::new(program).args(words).arg("--version"));
}

/// What an XPath expression finds in a file, as text.
fn find(file: &Path, expression: &str) -> String {
    let mut command = Command::new(need("xmllint", "libxml2-utils"));
    let text = output(command.args(["--xpath", &format!("string({expression})")]).arg(file));
    text.trim().to_owned()
}

/// The command line that libvirt makes of the interface in a domain.
fn as_libvirt(file: &Path, run: &Path) -> Vec<String> {
    let interface = "//interface[backend/@type='passt']";
    let of = |path: &str| find(file, &format!("{interface}/{path}"));
    let mut words = vec!["--one-off".to_owned()];
    if of("@type") == "vhostuser" {
        assert_eq!(find(file, "//memoryBacking/access/@mode"), "shared");
        assert_eq!(of("model/@type"), "virtio");
        words.insert(0, "--vhost-user".into());
    }
    let mut add = |option: &str, value: String| {
        if !value.is_empty() {
            words.extend([option.to_owned(), value]);
        }
    };
    add("--socket", run.join("1-vm-net0.socket").display().to_string());
    add("--pid", run.join("1-vm-net0-passt.pid").display().to_string());
    add("--mtu", of("mtu/@size"));
    add(
        "--log-file",
        run.join(of("backend/@logFile").trim_start_matches('/')).display().to_string(),
    );
    add("--hostname", of("backend/@hostname"));
    add("--address", of("ip[@family='ipv4']/@address"));
    add("--netmask", of("ip[@family='ipv4']/@prefix"));
    let count = |path: &str| -> usize {
        let all = format!("string(count({interface}/{path}))");
        let mut command = Command::new(need("xmllint", "libxml2-utils"));
        output(command.args(["--xpath", &all]).arg(file)).trim().parse().expect("is a number")
    };
    for n in 1..=count("portForward") {
        let forward = format!("portForward[{n}]");
        let ranges = (1..=count(&format!("{forward}/range"))).map(|n| {
            let of = |name: &str| of(&format!("{forward}/range[{n}]/@{name}"));
            let not = if of("exclude") == "yes" { "~" } else { "" };
            let dash =
                |name: &str| Some(of(name)).filter(|s| !s.is_empty()).map(|s| format!("-{s}"));
            let to = Some(of("to")).filter(|s| !s.is_empty()).map(|s| format!(":{s}"));
            format!(
                "{not}{}{}{}",
                of("start"),
                dash("end").unwrap_or_default(),
                to.unwrap_or_default()
            )
        });
        let ranges = ranges.collect::<Vec<_>>().join(",");
        let address = of(&format!("{forward}/@address"));
        let listen = if address.is_empty() { address } else { format!("{address}/") };
        add(&format!("--{}-ports", of(&format!("{forward}/@proto"))), format!("{listen}{ranges}"));
    }
    words
}

#[test]
fn libvirts_domains_become_command_lines_that_start() {
    for name in ["libvirt/user.xml", "libvirt/vhostuser.xml"] {
        let file = file(name);
        output(Command::new(need("xmllint", "libxml2-utils")).arg("--noout").arg(&file));
        let place = Place::new();
        let run = place.dir.path();
        fs::create_dir(run.join("tmp")).expect("is ours");
        let words = as_libvirt(&file, run);
        output(place.command(Who::Root, PASST).args(&words));
        let connect = || TcpStream::connect(("127.0.0.1", 2222)).is_ok();
        assert!(place.host().within(connect), "{name}: {words:?}");
        let pid = fs::read_to_string(run.join("1-vm-net0-passt.pid")).expect("is there");
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("is a number"));
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("it lives");
        place.assert_nothing_is_left();
    }
}

#[test]
fn kubevirts_manifest_is_one_and_its_ports_become_options() {
    need("python3", "python3");
    // The one interface with its binding, its network, and its ports as libvirt gets them.
    const READ: &str = "import sys, yaml
vm = yaml.safe_load(open(sys.argv[1]))
gate = yaml.safe_load(open(sys.argv[2]))['spec']['configuration']['developerConfiguration']
spec = vm['spec']['template']['spec']
(interface,), (network,) = spec['domain']['devices']['interfaces'], spec['networks']
print(vm['apiVersion'], vm['kind'], interface['passtBinding'], gate['featureGates'])
print(interface['name'] == network['name'], network['pod'])
for port in interface['ports']:
    print('--%s-ports' % port['protocol'].lower(), port['port'])";
    let mut command = Command::new("python3");
    command
        .args(["-c", READ])
        .arg(file("kubevirt/vm.yaml"))
        .arg(file("kubevirt/feature-gate.yaml"));
    let result = command.output().expect("starts");
    let errors = String::from_utf8_lossy(&result.stderr);
    assert!(!errors.contains("No module named"), "install the package python3-yaml");
    let said = String::from_utf8_lossy(&result.stdout);
    let (facts, ports) = said.split_at(said.find("--").unwrap_or(said.len()));
    assert_eq!(facts, "kubevirt.io/v1 VirtualMachine {} ['PasstBinding']\nTrue {}\n", "{errors}");
    are_options(PASST, &ports.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        ports.lines().collect::<Vec<_>>(),
        ["--tcp-ports 22", "--tcp-ports 80", "--udp-ports 53"]
    );
}

/// Commands in a document: indented lines, joined where a backslash ends them.
fn commands(document: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document));
    let text = text.expect("is there").replace("\\\n", " ");
    let code = text.lines().filter(|line| line.starts_with("    "));
    code.map(|line| line.trim_start().trim_start_matches("$ ").to_owned()).collect()
}

#[test]
fn command_lines_in_documents_have_options_that_exist() {
    let mut seen = 0;
    for document in ["README.md", "qemu-configs/README.md"] {
        for line in commands(document) {
            let mut words = line.split_whitespace();
            let (program, name) = match words.next() {
                Some(name @ "passt") => (Program::Passt, name),
                Some(name @ "pasta") => (Program::Pasta, name),
                _ => continue,
            };
            let words: Vec<_> = words.map(Into::into).collect();
            let parsed = parse(program, name, &words);
            assert!(matches!(parsed, Ok(Request::Run(..))), "{document}: {line}: {parsed:?}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} command lines");
}

#[test]
fn scripts_are_understood_by_their_shells() {
    for name in ["demo", "qemu-stream", "qemu-vhost-user", "qemu-netdev-passt", "cloud-hypervisor"]
    {
        let text = fs::read_to_string(file(name)).expect("is there");
        let shell = text.lines().next().and_then(|line| line.strip_prefix("#!")).expect("a script");
        output(Command::new(shell).arg("-n").arg(file(name)));
    }
}

/// They compile; whether they are enforced depends on the kernel.
#[test]
fn apparmor_understands_the_profiles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/apparmor");
    for name in ["usr.bin.passt", "usr.bin.pasta", "usr.bin.pesto"] {
        let mut parser = Command::new(need("apparmor_parser", "apparmor"));
        parser.args(["--skip-kernel-load", "--skip-cache", "--Include"]).arg(&folder);
        output(parser.args(["--Include", "/etc/apparmor.d"]).arg(folder.join(name)));
    }
}

/// They compile against the reference policy, types and interfaces and all; whether they are enforced
/// depends on the kernel.
#[test]
fn selinux_understands_the_policy() {
    const MAKEFILE: &str = "/usr/share/selinux/devel/Makefile";
    assert!(Path::new(MAKEFILE).exists(), "this test needs the package selinux-policy-dev");
    need("make", "make");
    need("gawk", "gawk");
    need("m4", "m4");
    need("checkmodule", "checkpolicy");
    need("semodule_package", "semodule-utils");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/selinux");
    let build = TempDir::new();
    for module in ["passt", "pasta", "pesto"] {
        for kind in ["te", "if", "fc"] {
            let name = format!("{module}.{kind}");
            fs::copy(folder.join(&name), build.join(&name)).expect("is there");
        }
    }
    let mut make = Command::new("make");
    make.args(["NAME=default", "-f", MAKEFILE]).current_dir(build.join("."));
    let said = make.output().expect("make runs");
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && !text.contains("deprecated"), "{text}");
    for module in ["passt.pp", "pasta.pp", "pesto.pp"] {
        assert!(build.join(module).exists(), "{module}: {text}");
    }
}

/// A fresh machine has nothing that the test command does not install.
#[test]
fn the_test_command_installs_every_package_that_a_test_needs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(root.join("test")).expect("is there");
    let (_, list) = script.split_once("\npackages ").expect("names packages");
    let (list, _) = list.split_once("\n\n").expect("ends");
    let installed: Vec<&str> = list.split_whitespace().collect();
    let mut needed = 0;
    for folder in ["tests", "tests/common"] {
        for entry in fs::read_dir(root.join(folder)).expect("is there").flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            // In two pieces, or this line would be one of those it looks for.
            for call in text.split(concat!("need", "(\"")).skip(1) {
                let package = call.split('"').nth(2).expect("a program, and its package");
                assert!(installed.contains(&package), "{:?} needs {package}", entry.path());
                needed += 1;
            }
        }
    }
    assert!(needed > 10, "found {needed} only");
}
