use super::*;
use proptest::prelude::*;

fn context() -> Context {
    Context {
        v4: true,
        v6: true,
        ephemeral: 32_768..=60_999,
        auto_allowed: true,
        listen_allowed: true,
    }
}

fn rules_in(context: &Context, specs: &[&str]) -> Result<Vec<String>, Error> {
    let mut rules = Rules::default();
    for spec in specs {
        let (protocol, spec) = match spec.strip_prefix("udp ") {
            Some(spec) => (Protocol::Udp, spec),
            None => (Protocol::Tcp, *spec),
        };
        rules.add(protocol, spec, context)?;
    }
    Ok(rules.as_slice().iter().map(ToString::to_string).collect())
}

#[track_caller]
fn accepted(specs: &[&str], expected: &[&str]) {
    assert_eq!(rules_in(&context(), specs).unwrap(), expected, "{specs:?}");
}

#[track_caller]
fn refused(specs: &[&str], message: &str) {
    let error = rules_in(&context(), specs).unwrap_err().to_string();
    assert!(error.starts_with(message), "{specs:?}: {error}");
}

#[test]
fn single_ports_and_ranges_are_translated() {
    accepted(&["22"], &["TCP [*]:22  =>  22"]);
    accepted(&["22:23"], &["TCP [*]:22  =>  23"]);
    accepted(&["22-80:32-90"], &["TCP [*]:22-80  =>  32-90"]);
    accepted(&["udp 22-80:32-90"], &["UDP [*]:22-80  =>  32-90"]);
    accepted(&["22,80:81"], &["TCP [*]:22  =>  22", "TCP [*]:80  =>  81"]);
    accepted(&["65535"], &["TCP [*]:65535  =>  65535"]);
}

#[test]
fn listening_addresses_of_every_form_are_taken() {
    accepted(&["127.0.0.1/22"], &["TCP [127.0.0.1]:22  =>  22"]);
    accepted(&["[127.0.0.1]/22"], &["TCP [127.0.0.1]:22  =>  22"]);
    accepted(&["::1/22"], &["TCP [::1]:22  =>  22"]);
    accepted(&["[::1]/22"], &["TCP [::1]:22  =>  22"]);
    accepted(&["::ffff:127.0.0.1/22"], &["TCP [127.0.0.1]:22  =>  22"]);
    accepted(&["192.0.2.1%eth0/22"], &["TCP [192.0.2.1]%eth0:22  =>  22"]);
    accepted(&["[fe80::1]%eth0/22"], &["TCP [fe80::1]%eth0:22  =>  22"]);
    accepted(&["%eth0/22"], &["TCP [*]%eth0:22  =>  22"]);
    accepted(&["*%eth0/22"], &["TCP [*]%eth0:22  =>  22"]);
    accepted(&["/22"], &["TCP [*]:22  =>  22"]);
    accepted(&["*/22"], &["TCP [*]:22  =>  22"]);
    accepted(&["224.0.0.251/5353"], &["TCP [224.0.0.251]:5353  =>  5353"]);
    accepted(&["0.0.0.0/22", "[::]/22"], &["TCP [0.0.0.0]:22  =>  22", "TCP [::]:22  =>  22"]);
}

#[test]
fn targets_of_every_form_are_taken() {
    accepted(&["0.0.0.0/5000:192.0.2.5/6000"], &["TCP [0.0.0.0]:5000  =>  [192.0.2.5]:6000"]);
    accepted(&["0.0.0.0/5000:192.0.2.5"], &["TCP [0.0.0.0]:5000  =>  [192.0.2.5]:5000"]);
    accepted(&["[::]/80:2001:db8::5/81"], &["TCP [::]:80  =>  [2001:db8::5]:81"]);
    accepted(&["[::]/80:[2001:db8::5]/81"], &["TCP [::]:80  =>  [2001:db8::5]:81"]);
    accepted(
        &["127.0.0.1/all:192.0.2.6"],
        &[
            "TCP [127.0.0.1]:1-32767  =>  [192.0.2.6]:1-32767  (best effort)",
            "TCP [127.0.0.1]:61000-65535  =>  [192.0.2.6]:61000-65535  (best effort)",
        ],
    );
}

#[test]
fn a_target_without_listening_address_needs_a_single_family() {
    refused(&["22:192.0.2.5"], "Invalid port specifier '22:192.0.2.5': target address needs");
    let v4 = Context { v6: false, ..context() };
    let expected = ["TCP [0.0.0.0]:22  =>  [192.0.2.5]:22"];
    assert_eq!(rules_in(&v4, &["22:192.0.2.5"]).unwrap(), expected);
    let expected = ["TCP [0.0.0.0]:22  =>  [192.0.2.5]:23"];
    assert_eq!(rules_in(&v4, &["22:192.0.2.5/23"]).unwrap(), expected);
}

#[test]
fn exclusions_split_ranges_and_keep_their_targets_in_step() {
    accepted(
        &["2000-5000,~3000-3010"],
        &["TCP [*]:2000-2999  =>  2000-2999", "TCP [*]:3011-5000  =>  3011-5000"],
    );
    accepted(
        &["20-30:120-130,~25,~20"],
        &["TCP [*]:21-24  =>  121-124", "TCP [*]:26-30  =>  126-130"],
    );
}

#[test]
fn all_and_exclusions_alone_leave_out_the_ephemeral_ports() {
    let all = [
        "TCP [*]:1-32767  =>  1-32767  (best effort)",
        "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
    ];
    accepted(&["all"], &all);
    accepted(&["all,all"], &all);
    accepted(
        &["~20000-20010"],
        &[
            "TCP [*]:1-19999  =>  1-19999  (best effort)",
            "TCP [*]:20011-32767  =>  20011-32767  (best effort)",
            "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
        ],
    );
    accepted(&["all,~1-65000"], &["TCP [*]:65001-65535  =>  65001-65535  (best effort)"]);
    refused(&["~1-65535"], "Invalid port specifier '~1-65535': no ports left");
    refused(&["22,~22"], "Invalid port specifier '22,~22': no ports left");
}

#[test]
fn an_explicit_port_may_be_ephemeral() {
    accepted(&["40000"], &["TCP [*]:40000  =>  40000"]);
}

#[test]
fn explicit_ports_beside_all_are_kept_and_win() {
    let expected = [
        "TCP [*]:2222  =>  22",
        "TCP [*]:1-2221  =>  1-2221  (best effort)",
        "TCP [*]:2223-32767  =>  2223-32767  (best effort)",
        "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
    ];
    accepted(&["all,2222:22"], &expected);
    accepted(&["2222:22", "all"], &expected);
    accepted(
        &["all", "2222:22"],
        &[
            "TCP [*]:1-2221  =>  1-2221  (best effort)",
            "TCP [*]:2223-32767  =>  2223-32767  (best effort)",
            "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
            "TCP [*]:2222  =>  22",
        ],
    );
    accepted(
        &["all,40000"],
        &[
            "TCP [*]:40000  =>  40000",
            "TCP [*]:1-32767  =>  1-32767  (best effort)",
            "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
        ],
    );
}

#[test]
fn auto_marks_whatever_set_results() {
    accepted(
        &["auto"],
        &[
            "TCP [*]:1-32767  =>  1-32767  (best effort)  (auto-scan)",
            "TCP [*]:61000-65535  =>  61000-65535  (best effort)  (auto-scan)",
        ],
    );
    accepted(&["8000-8010,auto"], &["TCP [*]:8000-8010  =>  8000-8010  (auto-scan)"]);
    accepted(
        &["::1/auto,~1-65000"],
        &["TCP [::1]:65001-65535  =>  65001-65535  (best effort)  (auto-scan)"],
    );
    let passt = Context { auto_allowed: false, ..context() };
    assert_eq!(rules_in(&passt, &["auto"]), Err(Error::AutoNotAllowed));
    assert_eq!(rules_in(&passt, &["8000,auto"]), Err(Error::AutoNotAllowed));
}

#[test]
fn the_same_port_in_the_same_place_is_a_conflict() {
    let message = "Forwarding configuration conflict: ";
    refused(&["22,22"], message);
    refused(&["22", "22"], message);
    refused(&["20-30", "25:80"], message);
    refused(&["%lo/22", "*%lo/22"], message);
    refused(&["0.0.0.0/22", "0.0.0.0/22"], message);
    refused(&["all", "all"], message);
}

#[test]
fn the_same_port_in_different_places_is_none() {
    for specs in [
        ["22", "127.0.0.1/22"],
        ["0.0.0.0/22", "127.0.0.1/22"],
        ["%lo/22", "%eth0/22"],
        ["22", "%eth0/22"],
        ["22", "0.0.0.0/22"],
        ["127.0.0.1/22", "127.0.0.2/22"],
        ["22", "udp 22"],
    ] {
        assert_eq!(rules_in(&context(), &specs).unwrap().len(), 2, "{specs:?}");
    }
}

#[test]
fn rules_compete_when_their_sockets_could_get_the_same_packet() {
    let rule = |spec: &str| parse(Protocol::Tcp, spec, &context()).unwrap().remove(0);
    for (a, b, expected) in [
        ("22", "127.0.0.1/22", true),
        ("22", "%eth0/22", true),
        ("0.0.0.0/22", "127.0.0.1/22", true),
        ("0.0.0.0/22", "[::]/22", false),
        ("%lo/22", "%eth0/22", false),
        ("127.0.0.1/22", "127.0.0.2/22", false),
        ("22", "23", false),
        ("20-30", "127.0.0.1/22", true),
    ] {
        assert_eq!(rule(a).competes_with(&rule(b)), expected, "{a} {b}");
        assert_eq!(rule(b).competes_with(&rule(a)), expected, "{b} {a}");
    }
}

#[test]
fn none_may_come_first_but_not_last() {
    accepted(&["none"], &[]);
    accepted(&["none", "22"], &["TCP [*]:22  =>  22"]);
    accepted(&["udp 22", "none"], &["UDP [*]:22  =>  22"]);
    refused(&["22", "none"], "TCP ports: 'none' given after other port rules");
}

#[test]
fn nonsense_is_refused() {
    for spec in [
        "",
        "0",
        "22:0",
        "65536",
        "22:",
        "22,",
        ",22",
        "foo",
        "2222 ",
        " 22",
        "+22",
        "-22",
        "1-0",
        "22-",
        "22-80:32-91",
        "22:65536",
        "22/",
        "foo/22",
        "1.2.3/22",
        "[::1/22",
        "::1]/22",
        "%/22",
        "%./22",
        "%../22",
        "%0123456789abcdef/22",
        "%a b/22",
        "1.2.3.4%/22",
        "~",
        "~0",
        "~22:23",
        "all:22",
        "all:",
        "auto:1.2.3.4",
        "none,22",
        "22,none",
        "1.1.1.1/none",
        "0.0.0.0/22:1.2.3.4/",
        "0.0.0.0/22:0.0.0.0",
        "0.0.0.0/22:224.0.0.1",
        "0.0.0.0/22:::1",
        "[::]/22:1.2.3.4",
        "0.0.0.0/22:1.2.3.4/22-23",
        "0x16",
        "ssh",
        "22:1.2.3.4/22/23",
    ] {
        refused(&[spec], &format!("Invalid port specifier '{spec}': "));
    }
}

#[test]
fn families_that_are_off_are_refused_or_left_out() {
    let v4 = Context { v6: false, ..context() };
    let v6 = Context { v4: false, ..context() };
    assert_eq!(rules_in(&v4, &["::1/22"]), Err(Error::Ipv6Disabled));
    assert_eq!(rules_in(&v6, &["127.0.0.1/22"]), Err(Error::Ipv4Disabled));
    assert_eq!(rules_in(&v4, &["22"]).unwrap(), ["TCP [0.0.0.0]:22  =>  22"]);
    assert_eq!(rules_in(&v6, &["22"]).unwrap(), ["TCP [::]:22  =>  22"]);
    assert_eq!(Error::Ipv6Disabled.to_string(), "IPv6 forward, but IPv6 not enabled");
}

#[test]
fn out_of_a_namespace_no_listening_address_is_taken() {
    let splice = Context { listen_allowed: false, ..context() };
    assert_eq!(rules_in(&splice, &["22"]).unwrap().len(), 1);
    for spec in ["127.0.0.1/22", "/22", "%lo/22"] {
        let reason = Reason::ListenNotAllowed;
        assert_eq!(
            rules_in(&splice, &[spec]),
            Err(Error::Invalid { spec: spec.to_owned(), reason })
        );
    }
}

#[test]
fn what_libvirt_types_is_understood() {
    accepted(
        &["2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040"],
        &[
            "TCP [2001:db8:ac10:fd01::1:10]:22  =>  2022",
            "TCP [2001:db8:ac10:fd01::1:10]:1000-1019  =>  1000-1019",
            "TCP [2001:db8:ac10:fd01::1:10]:1021-1029  =>  1021-1029",
            "TCP [2001:db8:ac10:fd01::1:10]:1041-1050  =>  1041-1050",
        ],
    );
    accepted(
        &["udp 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015"],
        &[
            "UDP [1.2.3.4]%eth0:5000-5009  =>  6000-6009",
            "UDP [1.2.3.4]%eth0:5016-5020  =>  6016-6020",
        ],
    );
    accepted(&["80", "443:344"], &["TCP [*]:80  =>  80", "TCP [*]:443  =>  344"]);
}

#[test]
fn a_refused_specifier_leaves_nothing_behind() {
    let mut rules = Rules::default();
    rules.add(Protocol::Tcp, "80", &context()).unwrap();
    rules.add(Protocol::Tcp, "22,80", &context()).unwrap_err();
    assert_eq!(rules.as_slice().len(), 1);
}

#[test]
fn the_number_of_rules_is_bounded() {
    let mut rules = Rules::default();
    let many: Vec<String> = (1..=65_535u32).step_by(2).map(|p| p.to_string()).collect();
    let error = rules.add(Protocol::Tcp, &many.join(","), &context());
    assert_eq!(error, Err(Error::TooManyRules));
}

#[test]
fn the_kernels_ephemeral_range_is_read() {
    assert_eq!(parse_ephemeral("32768\t60999\n"), Some(32_768..=60_999));
    for bad in ["", "1", "2 1", "x y", "1 65536"] {
        assert_eq!(parse_ephemeral(bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(spec in ".*", v4: bool, v6: bool) {
        let context = Context { v4, v6, ..context() };
        let _ = Rules::default().add(Protocol::Tcp, &spec, &context);
    }

    #[test]
    fn text_of_the_grammars_letters_gives_sound_rules(spec in "[0-9a-f:./,~%*\\[\\]-]{0,40}") {
        let mut rules = Rules::default();
        if rules.add(Protocol::Udp, &spec, &context()).is_ok() {
            for rule in rules.as_slice() {
                prop_assert!(rule.first != 0 && rule.first <= rule.last && rule.to != 0);
                prop_assert!(rule.to.checked_add(rule.last - rule.first).is_some());
            }
        }
    }

    #[test]
    fn all_with_exclusions_covers_exactly_the_rest(
        cuts in proptest::collection::vec((1u16.., 0u16..2000), 1..6),
    ) {
        let cuts: Vec<_> = cuts.iter().map(|(a, n)| (*a, a.saturating_add(*n))).collect();
        let spec: Vec<_> = cuts.iter().map(|(a, b)| format!("~{a}-{b}")).collect();
        let mut rules = Rules::default();
        rules.add(Protocol::Tcp, &spec.join(","), &context()).unwrap();
        for port in 1..=u16::MAX {
            let covered = rules.as_slice().iter().filter(|r| r.first <= port && port <= r.last);
            let cut = cuts.iter().any(|(a, b)| (*a..=*b).contains(&port));
            let expected = !cut && !context().ephemeral.contains(&port);
            prop_assert_eq!(covered.count(), usize::from(expected), "port {}", port);
        }
    }
}

/// The rules of specifiers, as a table that comes from elsewhere.
fn table(specs: &[&str]) -> Vec<Rule> {
    let parse = |spec: &&str| parse(Protocol::Tcp, spec, &context()).unwrap();
    specs.iter().flat_map(parse).collect()
}

#[test]
fn tables_of_good_rules_are_taken_as_they_are() {
    for specs in [
        &["22", "127.0.0.1/22", "%lo/22", "%eth0/22", "23-30:1-8"][..],
        &["192.0.2.1/all:198.51.100.1", "[::]/80:2001:db8::5/81", "auto"],
        &[],
    ] {
        let table = table(specs);
        assert_eq!(check(table.clone(), &context()), Ok(table));
    }
}

#[test]
fn tables_are_held_to_what_the_command_line_is_held_to() {
    let refused = |rules, context: &Context, message: &str| {
        let error = check(rules, context).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    };
    let conflict = "Forwarding configuration conflict: TCP [*]:25-30  =>  25-30 versus TCP [*]:20";
    refused(table(&["20-30", "192.0.2.1/25", "25-30"]), &context(), conflict);
    refused(table(&["all", "25-30"]), &context(), "Forwarding configuration conflict: ");
    let v4 = Context { v6: false, ..context() };
    refused(table(&["::1/22"]), &v4, "IPv6 forward, but IPv6 not enabled");
    refused(table(&["auto"]), &Context { auto_allowed: false, ..context() }, "'auto' port");
    let inside = Context { listen_allowed: false, ..context() };
    refused(table(&["%eth0/22"]), &inside, "Invalid forwarding rule TCP [*]%eth0:22  =>  22: list");
    refused(vec![table(&["22"]).remove(0); MAX_RULES + 1], &context(), "More than 4096 port");
    for change in [
        |rule: &mut Rule| rule.first = 0,
        |rule: &mut Rule| rule.last = 21,
        |rule: &mut Rule| rule.to = 0,
        |rule: &mut Rule| (rule.last, rule.to) = (24, 65_534),
        |rule: &mut Rule| rule.target = Some("192.0.2.1".parse().unwrap()),
    ] {
        let mut rules = table(&["22"]);
        change(&mut rules[0]);
        refused(rules, &context(), "Invalid forwarding rule TCP ");
    }
}

#[test]
fn any_address_of_a_table_is_the_wildcard_of_the_only_family() {
    let v4 = Context { v6: false, ..context() };
    let rules = check(table(&["22"]), &v4).unwrap();
    assert_eq!(rules[0].to_string(), "TCP [0.0.0.0]:22  =>  22");
}

#[test]
fn out_of_a_namespace_ports_of_its_loopback_interface_are_forwarded() {
    let inside = Context { listen_allowed: false, ..context() };
    let rules = parse(Protocol::Tcp, "22:2222", &inside).unwrap();
    assert_eq!(rules[0].to_string(), "TCP [*]%lo:22  =>  2222");
    assert_eq!(check(rules.clone(), &inside), Ok(rules));
}
