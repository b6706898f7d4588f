use super::*;
use proptest::prelude::*;

fn rule() -> Rule {
    Rule {
        listen: None,
        ifname: None,
        protocol: Protocol::Tcp,
        first: 8080,
        last: 8081,
        target: None,
        to: 80,
        weak: false,
        auto: false,
    }
}

const ANY: &str = "00000000000000000000000000000000";
const NO_INTERFACE: &str = ANY;

#[track_caller]
fn is_emitted(rule: &Rule, fields: &[&str]) {
    let hex: String = emit_rule(rule).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, fields.concat(), "{rule}");
    assert_eq!(parse_rule(&emit_rule(rule)).as_ref(), Ok(rule));
}

#[test]
fn rules_are_56_bytes_in_the_order_of_the_original() {
    is_emitted(&rule(), &[ANY, ANY, NO_INTERFACE, "1f90", "1f91", "0050", "06", "01"]);
    let v4 = Rule {
        listen: Some("192.0.2.1".parse().unwrap()),
        target: Some("198.51.100.7".parse().unwrap()),
        ifname: Some("eth0".to_owned()),
        protocol: Protocol::Udp,
        weak: true,
        ..rule()
    };
    let fields = [
        "00000000000000000000ffffc0000201",
        "00000000000000000000ffffc6336407",
        "65746830000000000000000000000000",
        "1f90",
        "1f91",
        "0050",
        "11",
        "02",
    ];
    is_emitted(&v4, &fields);
    let v6 = Rule {
        listen: Some("2001:db8::1".parse().unwrap()),
        ifname: Some("fifteen-letters".to_owned()),
        auto: true,
        ..rule()
    };
    let fields = [
        "20010db8000000000000000000000001",
        ANY,
        "6669667465656e2d6c65747465727300",
        "1f90",
        "1f91",
        "0050",
        "06",
        "04",
    ];
    is_emitted(&v6, &fields);
    let wildcard = Rule { listen: Some("::".parse().unwrap()), ..rule() };
    is_emitted(&wildcard, &[ANY, ANY, NO_INTERFACE, "1f90", "1f91", "0050", "06", "00"]);
}

#[test]
fn either_unspecified_address_stands_for_no_target() {
    let mut bytes = emit_rule(&rule());
    bytes[16 + 10..16 + 12].fill(0xff);
    assert_eq!(parse_rule(&bytes), Ok(rule()));
}

#[test]
fn what_follows_the_end_of_a_name_does_not_matter() {
    let mut bytes = emit_rule(&Rule { ifname: Some("lo".to_owned()), ..rule() });
    bytes[32 + 3..48].fill(0xee);
    assert_eq!(parse_rule(&bytes).unwrap().ifname.as_deref(), Some("lo"));
}

#[test]
fn impossible_rules_are_refused() {
    let with = |change: &dyn Fn(&mut [u8; RULE_LEN])| {
        let mut bytes = emit_rule(&rule());
        change(&mut bytes);
        parse_rule(&bytes)
    };
    for (field, value, expected) in [
        (48..50, [0, 0], Malformed::Ports),
        (50..52, [0, 1], Malformed::Ports),
        (52..54, [0, 0], Malformed::Ports),
        (52..54, [0xff, 0xff], Malformed::Ports),
        (54..56, [1, 1], Malformed::Protocol(1)),
        (54..56, [6, 8], Malformed::Flags(8)),
        (54..56, [6, 0x81], Malformed::Flags(0x81)),
        (14..16, [0, 1], Malformed::Flags(1)),
        (32..34, [b'.', 0], Malformed::Interface),
        (32..34, [b'/', 0], Malformed::Interface),
        (32..34, [0xff, 0], Malformed::Interface),
    ] {
        let refused = with(&|bytes| bytes[field.clone()].copy_from_slice(&value));
        assert_eq!(refused, Err(expected), "{field:?} {value:?}");
    }
    assert_eq!(with(&|bytes| bytes[32..48].fill(b'a')), Err(Malformed::Interface));
    assert_eq!(parse_rule(&emit_rule(&rule())[1..]), Err(Malformed::Short));
}

fn passt() -> Table<About> {
    let caps = Caps { v4: true, v6: true, tcp: true, udp: true, scan: false, ifname: true };
    Table { pif: HOST, about: About { name: "HOST".to_owned(), caps }, rules: Vec::new() }
}

#[test]
fn a_greeting_without_rules_is_that_of_the_original() {
    let bytes = emit_greeting(&[passt()]);
    assert_eq!(bytes.len(), 20 + 137 + 1);
    assert_eq!(bytes[..20], *b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10");
    assert_eq!(bytes[20..26], *b"\x01HOST\0");
    assert!(bytes[26..20 + 129].iter().all(|byte| *byte == 0));
    // IPv4, IPv6, TCP, UDP and interfaces; no rules; the end.
    assert_eq!(bytes[20 + 129..], *b"\0\0\0\x2f\0\0\0\0\0");
    assert_eq!(Greeting::new().push(&bytes), Ok(Some(vec![passt()])));
}

#[test]
fn an_update_is_tables_without_names() {
    let tables = [
        Table { pif: HOST, about: (), rules: vec![rule()] },
        Table { pif: SPLICE, about: (), rules: vec![] },
    ];
    let bytes = emit_update(&tables);
    assert_eq!(bytes.len(), 5 + 56 + 5 + 1);
    assert_eq!(bytes[..5], [1, 0, 0, 0, 1]);
    assert_eq!(bytes[5..61], emit_rule(&rule()));
    assert_eq!(bytes[61..], [3, 0, 0, 0, 0, 0]);
    let mut update = Update::new();
    assert!(!update.has_begun());
    assert_eq!(update.push(&bytes), Ok(Some(tables.to_vec())));
    assert_eq!(emit_update(&[]), [0]);
    assert_eq!(Update::new().push(&[0]), Ok(Some(Vec::new())));
}

#[test]
fn bits_of_what_a_table_can_are_those_of_the_original() {
    let all = Caps { v4: true, v6: true, tcp: true, udp: true, scan: true, ifname: true };
    assert_eq!(all.to_bits(), 63);
    for bits in 0..64 {
        assert_eq!(Caps::from_bits(bits).to_bits(), bits);
    }
    assert_eq!(Caps::from_bits(u32::MAX), all);
    assert_eq!(Caps { scan: true, ..Caps::default() }.to_bits(), 16);
}

#[test]
fn other_daemons_are_told_from_ours_by_what_they_say_first() {
    let good = emit_greeting(&[passt()]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Greeting::new().push(&bytes).unwrap_err()
    };
    assert_eq!(Greeting::new().push(b"SSH-2.0"), Err(Malformed::Magic));
    assert_eq!(with(6, b'S'), Malformed::Magic);
    assert_eq!(with(11, 3), Malformed::Version(3));
    assert_eq!(with(11, 0), Malformed::Version(0));
    assert_eq!(with(15, 0x81), Malformed::Sizes);
    assert_eq!(with(19, 0x11), Malformed::Sizes);
    assert_eq!(with(21, 0), Malformed::TableName);
    assert_eq!(with(21, 0x1b), Malformed::TableName);
    assert_eq!(with(21, 0xff), Malformed::TableName);
    assert_eq!(with(20 + 129 + 4, 1), Malformed::TooManyRules(1 << 24));
    let twice = emit_greeting(&[passt(), passt()]);
    assert_eq!(Greeting::new().push(&twice), Err(Malformed::TableTwice(HOST)));
    let more = [good, vec![0]].concat();
    assert_eq!(Greeting::new().push(&more), Err(Malformed::Excess));
}

#[test]
fn no_more_rules_are_kept_than_two_tables_can_have() {
    let full = |pif| Table { pif, about: (), rules: vec![rule(); MAX_RULES] };
    let two = [full(1), full(2)];
    assert_eq!(Update::new().push(&emit_update(&two)), Ok(Some(two.to_vec())));
    let three = emit_update(&[full(1), full(2), Table { pif: 3, about: (), rules: vec![rule()] }]);
    assert_eq!(Update::new().push(&three), Err(Malformed::TooManyRules(1)));
    let mut larger = full(1);
    larger.rules.push(rule());
    let refused = Err(Malformed::TooManyRules(MAX_RULES as u32 + 1));
    assert_eq!(Update::new().push(&emit_update(&[larger])), refused);
}

#[test]
fn a_result_has_a_status_and_perhaps_a_reason() {
    assert_eq!(emit_result(&Ok(String::new())), *b"basil:r\0\0\0\0\0\0\0\0\0");
    assert_eq!(emit_result(&Ok("a".to_owned())), *b"basil:r\0\0\0\0\0\0\0\0\x01a");
    assert_eq!(emit_result(&Err("no".to_owned())), *b"basil:r\0\0\0\0\x01\0\0\0\x02no");
    let long = emit_result(&Err("ü".repeat(MAX_TEXT)));
    assert_eq!(long.len(), 16 + MAX_TEXT);
    let read = ResultReader::default().push(&long).unwrap().unwrap();
    assert_eq!(read, Err("ü".repeat(MAX_TEXT / 2)));
    let mut too_long = long;
    too_long[14] = 0xff;
    assert_eq!(ResultReader::default().push(&too_long), Err(Malformed::Excess));
    assert_eq!(ResultReader::default().push(&[b'x'; 16]), Err(Malformed::Magic));
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()).to_canonical()),
    ]
}

prop_compose! {
    fn rules()(
        listen in proptest::option::of(addresses()),
        target in proptest::option::of(addresses().prop_filter("means none", |a| !a.is_unspecified())),
        ifname in proptest::option::of("[a-z][a-z0-9.@_-]{0,14}"),
        tcp: bool,
        (first, last) in (1u16.., 1u16..).prop_map(|(a, b)| (a.min(b), a.max(b))),
        to in 1u16..,
        weak: bool,
        auto: bool,
    ) -> Rule {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let to = to.min(u16::MAX - (last - first));
        Rule { listen, ifname, protocol, first, last, target, to: to.max(1), weak, auto }
    }
}

/// `push` for each of the pieces into which `cuts` cut `bytes`.
fn in_pieces<T>(
    bytes: &[u8],
    cuts: &[usize],
    mut push: impl FnMut(&[u8]) -> Result<Option<T>, Malformed>,
) -> Result<Option<T>, Malformed> {
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
        rest = tail;
        if let Some(done) = push(piece)? {
            return Ok(Some(done));
        }
    }
    Ok(None)
}

proptest! {
    #[test]
    fn tables_survive_the_wire_in_pieces_of_any_size(
        host in proptest::collection::vec(rules(), 0..5),
        inside in proptest::collection::vec(rules(), 0..5),
        name in "[A-Z ]{1,127}",
        bits in 0u32..64,
        cuts in proptest::collection::vec(1usize..200, 1..8),
    ) {
        let about = About { name, caps: Caps::from_bits(bits) };
        let tables = vec![
            Table { pif: HOST, about: about.clone(), rules: host },
            Table { pif: SPLICE, about, rules: inside },
        ];
        let mut greeting = Greeting::new();
        let read = in_pieces(&emit_greeting(&tables), &cuts, |piece| greeting.push(piece));
        prop_assert_eq!(read, Ok(Some(tables.clone())));
        let plain: Vec<Table> = tables
            .into_iter()
            .map(|table| Table { pif: table.pif, about: (), rules: table.rules })
            .collect();
        let mut update = Update::new();
        let read = in_pieces(&emit_update(&plain), &cuts, |piece| update.push(piece));
        prop_assert_eq!(read, Ok(Some(plain)));
    }

    #[test]
    fn results_survive_the_wire_in_pieces_of_any_size(
        text in ".{0,300}",
        taken: bool,
        cuts in proptest::collection::vec(1usize..20, 1..8),
    ) {
        let outcome = if taken { Ok(text) } else { Err(text) };
        let mut reader = ResultReader::default();
        let read = in_pieces(&emit_result(&outcome), &cuts, |piece| reader.push(piece));
        prop_assert_eq!(read, Ok(Some(outcome)));
    }

    #[test]
    fn garbage_is_no_update_and_what_is_kept_of_it_is_bounded(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(3), any::<u8>()], 0..600),
        cuts in proptest::collection::vec(1usize..70, 1..8),
    ) {
        let (mut update, mut greeting) = (Update::new(), Greeting::new());
        let mut reader = ResultReader::default();
        let _ = in_pieces(&bytes, &cuts, |piece| update.push(piece));
        let _ = in_pieces(&bytes, &cuts, |piece| greeting.push(piece));
        let _ = in_pieces(&bytes, &cuts, |piece| reader.push(piece));
        prop_assert!(update.tables.gather.0.len() < RULE_LEN);
        prop_assert!(update.tables.tables.len() <= 255);
        let _ = parse_rule(&bytes);
        let hello = [&emit_greeting(&[])[..20], &bytes].concat();
        let mut greeting = Greeting::new();
        let _ = in_pieces(&hello, &cuts, |piece| greeting.push(piece));
    }
}
