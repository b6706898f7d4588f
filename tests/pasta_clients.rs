//! `pasta` as its users have it, on networks of hosts in namespaces of their own: those who
//! configure their interface themselves, the lines that podman and rootlesskit type, and a
//! connection to the host on every network. Needs root, and the packages named below.

#[path = "common/hosts.rs"]
mod hosts;

use hosts::{Folder, HOSTS, script};
use nix::sched::{CloneFlags, unshare};
use passt::config::options::{Program, Request, parse};
use passt::config::{Config, Network};
use passt::host::netlink;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

const PASTA: &str = env!("CARGO_BIN_EXE_pasta");

/// A host as most are.
const USUAL: &str = HOSTS[0].network;

/// Runs `work` in a network namespace of its own that looks like `network`.
fn on_host<T: Send>(network: &str, work: impl FnOnce(&Folder) -> T + Send) -> T {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run as root");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            let folder = Folder::new();
            bash(&script(network, &folder));
            bash("ip link set lo up");
            work(&folder)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A script of bash that has some time to end.
fn timed(script: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", "bash", "-ec", script]);
    command
}

/// What a script prints that succeeds.
#[track_caller]
fn bash(script: &str) -> String {
    text(script, timed(script).output().expect("timeout is there (package coreutils)"))
}

/// What a program prints that succeeds.
#[track_caller]
fn text(name: &str, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {}: {stdout}{stderr}", output.status);
    stdout
}

/// What a script prints that `pasta` runs on a usual host. In the namespace, what a client of DHCP
/// writes to is its own.
#[track_caller]
fn inside(options: &str, script: &str) -> String {
    on_host(USUAL, |folder| {
        let resolv = folder.0.join("resolv.conf");
        fs::write(&resolv, "# nothing yet\n").expect("the folder is ours");
        let resolv = resolv.display();
        bash(&format!(
            "exec {PASTA} {options} -- bash -ec '
                mount --bind {resolv} /etc/resolv.conf
                mount -t tmpfs none /run
                for folder in /var/lib/dhcp /var/lib/dhcpcd; do
                    if [ -d $folder ]; then mount -t tmpfs none $folder; fi
                done
                {script}'"
        ))
    })
}

/// What is handed out besides addresses.
const NAMES: &str = "--dhcp-dns --dhcp-search -D 192.0.2.53 -D 2001:db8::53 -S a.example -m 9000";

/// Waits until there is a link-local address that may be used.
const LINK_LOCAL: &str = "ip link set eth0 up
    until ip -6 addr show dev eth0 scope link | grep inet6 | grep -qv tentative; do :; done";

#[test]
fn dhclient_configures_ipv4_and_ipv6() {
    // Package isc-dhcp-client.
    let said = inside(
        NAMES,
        &format!(
            "{LINK_LOCAL}
            dhclient -1 -q -pf /run/a -lf /run/leases eth0
            cat /etc/resolv.conf
            dhclient -6 -1 -q -pf /run/b -lf /run/leases6 eth0
            cat /etc/resolv.conf
            ip addr; ip route; ip -6 route"
        ),
    );
    for line in [
        "inet 192.0.2.5/24 brd 192.0.2.255 scope global eth0",
        "inet6 2001:db8:1::5/128 scope global",
        "default via 192.0.2.1 dev eth0",
        "default via fe80::1 dev eth0 proto ra",
        " mtu 9000 ",
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "search a.example.",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
}

#[test]
fn dhcpcd_configures_ipv4_and_ipv6() {
    // Package dhcpcd-base. It looks for others that have the address, for some seconds.
    let said = inside(
        NAMES,
        &format!(
            "{LINK_LOCAL}
            dhcpcd -1 -4 -q eth0
            dhcpcd -1 -6 -q --waitip=6 eth0
            ip addr; ip route; ip -6 route"
        ),
    );
    for line in [
        "inet 192.0.2.5/24 brd 192.0.2.255 scope global",
        "inet6 2001:db8:1:",
        "default via 192.0.2.1 dev eth0",
        "default via fe80::1 dev eth0 proto ra",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
}

#[test]
fn the_kernel_configures_ipv6_by_what_routers_advertise() {
    // Package ndisc6.
    let said = inside(
        NAMES,
        &format!(
            "{LINK_LOCAL}
            until ip -6 addr show dev eth0 scope global | grep -q inet6; do :; done
            rdisc6 -1 eth0
            ip addr; ip -6 route"
        ),
    );
    for line in [
        "inet6 2001:db8:1:0:",
        "default via fe80::1 dev eth0 proto ra",
        "Prefix                   : 2001:db8:1::/64",
        "MTU                      :         9000 bytes",
        "Recursive DNS server     : 2001:db8::53",
        "DNS search list          : a.example",
        "from fe80::1",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
}

#[test]
fn what_is_not_to_be_handed_out_is_not() {
    let said = inside(
        "-D 2001:db8::53 -S a.example --no-dhcp",
        &format!(
            "{LINK_LOCAL}
            rdisc6 -1 eth0
            if timeout 5 dhclient -1 -q -pf /run/a -lf /run/leases eth0; then echo leased; fi"
        ),
    );
    assert!(said.contains("from fe80::1"), "{said}");
    for line in ["Recursive DNS server", "DNS search list", "leased"] {
        assert!(!said.contains(line), "{line} in {said}");
    }
}

/// The network that `pasta` has with `options` on this host.
fn network(options: &str) -> Network {
    let args: Vec<_> = options.split_whitespace().map(Into::into).collect();
    let Ok(Request::Run(mode, typed)) = parse(Program::Pasta, "pasta", &args) else {
        panic!("{options}");
    };
    match Config::new(mode, &typed, &netlink::facts().expect("netlink is there")) {
        Ok((Config::Pasta(pasta), _)) => pasta.network,
        other => panic!("{options}: {other:?}"),
    }
}

/// Sends back one line of each connection, until one says `end`; how many others there were.
fn echo(listener: &TcpListener) -> usize {
    let mut served = 0;
    loop {
        let (mut stream, _) = listener.accept().expect("listens");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("is text");
        if line == "end\n" {
            return served;
        }
        stream.write_all(line.as_bytes()).expect("is read");
        served += 1;
    }
}

#[test]
fn on_every_host_a_command_reaches_the_host_by_ipv4_and_ipv6() {
    for host in HOSTS {
        on_host(host.network, |_| {
            let translation = network(host.options).translation;
            let v4 = translation.v4.host_loopback.map(IpAddr::from);
            let v6 = translation.v6.host_loopback.map(IpAddr::from);
            let mut script = String::new();
            let mut listeners = Vec::new();
            for (gateway, loopback) in [(v4, "127.0.0.1:0"), (v6, "[::1]:0")] {
                // IPv6 may be off, for all of the host.
                let Ok(listener) = TcpListener::bind(loopback) else { continue };
                let gateway = gateway.expect("something stands for the host");
                let port = listener.local_addr().expect("is bound").port();
                // Behind the link-local address of a router stands its link.
                let zone = if gateway.to_string().starts_with("fe80") { "%$link" } else { "" };
                script += &format!(
                    "exec 3<>/dev/tcp/{gateway}{zone}/{port}
                    echo {gateway} >&3; read -r line <&3; echo $line; exec 3<&-\n"
                );
                listeners.push((listener, gateway));
            }
            let ports = "-t none -u none -T none -U none -D none";
            let pasta = format!(
                "exec {PASTA} --config-net {ports} {} -- bash -ec '
                    link=$(ls /proc/sys/net/ipv4/neigh | grep -v default | grep -vx lo)
                    {script}'",
                host.options
            );
            let (said, served) = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    listeners.iter().map(|(l, _)| scope.spawn(move || echo(l))).collect();
                let said = timed(&pasta).output().expect("timeout is there");
                for (listener, _) in &listeners {
                    let addr = listener.local_addr().expect("is bound");
                    TcpStream::connect(addr).and_then(|mut s| s.write_all(b"end\n")).expect("is");
                }
                let served: usize =
                    threads.into_iter().map(|t| t.join().expect("does not panic")).sum();
                (said, served)
            });
            let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
            let warned = host.says.iter().any(|line| stderr.contains(line));
            assert!(stderr.is_empty() || warned, "{}: {stderr}", host.name);
            let expected: String = listeners.iter().map(|(_, g)| format!("{g}\n")).collect();
            assert_eq!(text(host.name, said), expected, "{}", host.name);
            assert_eq!(served, listeners.len(), "{}", host.name);
        });
    }
}

/// A script as an ordinary user, in a folder of his; `$PASTA` is the program.
#[track_caller]
fn as_user(script: &str) -> String {
    on_host(USUAL, |folder| {
        let pasta = folder.0.join("pasta");
        fs::copy(PASTA, &pasta).expect("the folder is ours");
        nix::unistd::chown(&folder.0, Some(1000.into()), Some(1000.into())).expect("we are root");
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).expect("we are root");
        let script = format!(
            "cd {}
            other() {{ [ $(readlink /proc/$1/ns/net) != $(readlink /proc/self/ns/net) ]; }}
            {script}",
            folder.0.display()
        );
        let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "--", "timeout", "60"];
        let mut command = Command::new("setpriv");
        command.args(user).args(["bash", "-ec", &script]).env("PASTA", pasta);
        text(&script, command.output().expect("setpriv is there (package util-linux)"))
    })
}

/// What a namespace has when `pasta` has returned: nothing is waited for.
#[track_caller]
fn is_complete(said: &str) {
    for line in [
        "LOOPBACK,UP",
        "default via ",
        "default via fe80::1",
        " mtu 65520 ",
        "inet6 fe80::",
        "scope link nodad",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(!said.contains("tentative"), "{said}");
}

#[test]
fn podmans_container_has_its_network_when_pasta_returns_without_a_word() {
    let said = as_user(
        "unshare -Urm bash -ec '
            unshare -n sleep 1000 & pid=$!
            until other $pid; do :; done
            touch netns; mount --bind /proc/$pid/ns/net netns
            $PASTA --config-net -t 127.0.0.1/8080-8080:80-80 --dns-forward 169.254.1.1 \
                -u none -T none -U none --no-map-gw --quiet --netns $PWD/netns \
                --map-guest-addr 169.254.1.2 --pid pid 2>&1
            nsenter --net=netns bash -c \"ip addr; ip route; ip -6 route\"
            umount netns; rm netns
            until ! kill -0 $(cat pid); do :; done
            kill $pid' 3>&1
        "
        .replace("other $pid", "[ $(readlink /proc/$pid/ns/net) != $(readlink /proc/$$/ns/net) ]")
        .as_str(),
    );
    is_complete(&said);
    assert!(said.starts_with("1: lo: "), "not a word before: {said}");
    for line in ["inet 192.0.2.5/24", "inet6 2001:db8:1::5/64", "default via 192.0.2.1 dev eth0"] {
        assert!(said.contains(line), "{line} in {said}");
    }
}

#[test]
fn rootlesskits_lines_give_a_network_to_a_process() {
    for target in ["$pid", "--userns=/proc/$pid/ns/user --netns=/proc/$pid/ns/net"] {
        let said = as_user(&format!(
            "unshare -Urn sleep 1000 & pid=$!
            until other $pid; do :; done
            $PASTA --host-lo-to-ns-lo --version >version
            $PASTA --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 \
                --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw \
                --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo --pid pid {target}
            nsenter -U -n --preserve-credentials -t $pid bash -c 'ip addr; ip route; ip -6 route'
            kill $pid
            while kill -0 $(cat pid); do :; done 2>&-"
        ));
        is_complete(&said);
        for line in ["inet 10.0.2.100/24", "default via 10.0.2.2 dev tap0"] {
            assert!(said.contains(line), "{line} in {said}");
        }
    }
}

#[test]
fn rootlesskit_without_ipv6_has_ports_by_themselves() {
    let said = as_user(
        "unshare -Urn sleep 1000 & pid=$!
        until other $pid; do :; done
        $PASTA --ns-ifname=tap0 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
            --ipv4-only --tcp-ports=auto --udp-ports=auto --pid pid $pid
        nsenter -U -n --preserve-credentials -t $pid bash -c 'ip addr; ip route'
        kill $pid",
    );
    assert!(said.contains("default via 10.0.2.2 dev tap0"), "{said}");
    assert!(!said.contains("scope global nodad"), "{said}");
}
