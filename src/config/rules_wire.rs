//! Forwarding rules on the control socket (`--conf-path`): what a daemon and `pesto` say to each
//! other, as bytes. Version 2 of the original's protocol; numbers are big endian.
//!
//! ```text
//! daemon -> client  "basil:s\0"  u32 version  u32 PIF_NAME_SIZE  u32 INTERFACE_NAME_SIZE
//!                   per table: u8 pif (not 0)  char name[128]  u32 caps  u32 n  n rules;  u8 0
//! client -> daemon  once, or never: per table: u8 pif  u32 n  n rules;  u8 0
//! daemon -> client  ours only: "basil:r\0"  u32 status  u32 length  text
//! rule              addr[16] target[16] ifname[16]  u16 first  u16 last  u16 to  u8 proto  u8 flags
//! ```
//!
//! The original's daemon does not tell what became of an update, and its client has closed the
//! connection by the time that ours does: so both understand ours, and our client takes the end of
//! the stream without a result for "unknown".
//!
//! Pure. Decoders take bytes in pieces of any size and never hold more than the rules that tables
//! may have ([`MAX_RULES`]).

use super::ports::{MAX_RULES, Rule, is_interface_name};
use crate::flow::Protocol;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What begins the daemon's side.
const HELLO: [u8; 8] = *b"basil:s\0";

/// What begins the result of an update.
const RESULT: [u8; 8] = *b"basil:r\0";

/// The version that is spoken here.
pub const VERSION: u32 = 2;

/// Bytes of a table's name, padded with NUL.
const PIF_NAME_SIZE: usize = 128;

/// Bytes of an interface's name, padded with NUL (IFNAMSIZ).
const INTERFACE_NAME_SIZE: usize = 16;

/// Bytes of the hello.
const HELLO_LEN: usize = 20;

/// Bytes of a rule.
pub const RULE_LEN: usize = 56;

/// Bytes of a result without its text.
const RESULT_LEN: usize = 16;

/// Rules of all tables at most: two of them may be full.
const MAX_TOTAL: usize = 2 * MAX_RULES;

/// Bytes of a result's text at most.
pub const MAX_TEXT: usize = 4096;

/// The table of ports of the host (`-t`, `-u`).
pub const HOST: u8 = 1;

/// The table of ports inside of a namespace (`-T`, `-U`).
pub const SPLICE: u8 = 3;

/// The listening address is any of both families; the field is `::`.
const FLAG_DUAL_STACK: u8 = 1;
/// [`Rule::weak`].
const FLAG_WEAK: u8 = 2;
/// [`Rule::auto`].
const FLAG_SCAN: u8 = 4;

/// What rules of a table may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// IPv4 addresses.
    pub v4: bool,
    /// IPv6 addresses.
    pub v6: bool,
    /// TCP ports.
    pub tcp: bool,
    /// UDP ports.
    pub udp: bool,
    /// Ports that are bound while someone listens on the other side (`auto`).
    pub scan: bool,
    /// Names of interfaces.
    pub ifname: bool,
}

impl Caps {
    /// The bits as they are sent.
    pub const fn to_bits(self) -> u32 {
        let Self { v4, v6, tcp, udp, scan, ifname } = self;
        v4 as u32
            | (v6 as u32) << 1
            | (tcp as u32) << 2
            | (udp as u32) << 3
            | (scan as u32) << 4
            | (ifname as u32) << 5
    }

    /// What bits mean. Unknown ones promise what we do not ask for.
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            v4: bits & 1 != 0,
            v6: bits & 2 != 0,
            tcp: bits & 4 != 0,
            udp: bits & 8 != 0,
            scan: bits & 16 != 0,
            ifname: bits & 32 != 0,
        }
    }
}

/// What a daemon says of a table besides its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The name by which users know it.
    pub name: String,
    /// What its rules may be.
    pub caps: Caps,
}

/// A table of rules; with [`About`] as the daemon sends it, without as the client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<A = ()> {
    /// Whose sockets listen: [`HOST`], [`SPLICE`], or what a newer daemon has.
    pub pif: u8,
    /// What else is known.
    pub about: A,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// What follows a table's number.
pub trait Head: Sized {
    /// How many bytes.
    const LEN: usize;

    /// What [`Self::LEN`] bytes mean.
    ///
    /// # Errors
    /// They mean nothing.
    fn parse(bytes: &[u8]) -> Result<Self, Malformed>;

    /// Appends the bytes.
    fn emit(&self, into: &mut Vec<u8>);
}

impl Head for () {
    const LEN: usize = 0;

    fn parse(_: &[u8]) -> Result<Self, Malformed> {
        Ok(())
    }

    fn emit(&self, _: &mut Vec<u8>) {}
}

impl Head for About {
    const LEN: usize = PIF_NAME_SIZE + 4;

    fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let name = take::<PIF_NAME_SIZE>(&mut bytes)?;
        let name = text(&name).filter(|name| !name.is_empty() && !name.contains(char::is_control));
        let name = name.ok_or(Malformed::TableName)?.to_owned();
        Ok(Self { name, caps: Caps::from_bits(u32::from_be_bytes(take(&mut bytes)?)) })
    }

    fn emit(&self, into: &mut Vec<u8>) {
        into.extend(padded::<PIF_NAME_SIZE>(&self.name));
        into.extend(self.caps.to_bits().to_be_bytes());
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No daemon of this kind.
    Magic,
    /// A version that we do not speak.
    Version(u32),
    /// Fields of other sizes than ours.
    Sizes,
    /// The name of a table is empty, not text or has no end.
    TableName,
    /// A table comes twice.
    TableTwice(u8),
    /// More than [`MAX_RULES`] in a table, or than twice as many in all.
    TooManyRules(u32),
    /// Neither TCP nor UDP.
    Protocol(u8),
    /// Flags that we do not know, or that contradict the address.
    Flags(u8),
    /// Port 0, an end before the beginning, or targets above 65535.
    Ports,
    /// No name that an interface can have.
    Interface,
    /// More bytes behind the end, or a text that is too long.
    Excess,
    /// Fewer bytes than the format has.
    Short,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("not a control socket of passt or pasta"),
            Self::Version(0) => f.write_str("experimental version of the protocol"),
            Self::Version(n) => write!(f, "version {n} of the protocol, expected {VERSION}"),
            Self::Sizes => f.write_str("names of unknown size"),
            Self::TableName => f.write_str("bad name of a table"),
            Self::TableTwice(pif) => write!(f, "table {pif} comes twice"),
            Self::TooManyRules(n) => write!(f, "too many rules: {n} more in one table"),
            Self::Protocol(n) => write!(f, "rule of unknown protocol {n}"),
            Self::Flags(n) => write!(f, "rule with impossible flags {n:#x}"),
            Self::Ports => f.write_str("rule with impossible ports"),
            Self::Interface => f.write_str("rule with a bad interface name"),
            Self::Excess => f.write_str("more bytes than expected"),
            Self::Short => f.write_str("fewer bytes than expected"),
        }
    }
}

impl std::error::Error for Malformed {}

/// The next `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(Malformed::Short)?;
    *bytes = rest;
    Ok(*taken)
}

/// Text up to the first NUL, of which there must be one.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(field.get(..end)?).ok()
}

/// Text with NUL behind it, cut off where it would not fit.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *to = from;
    }
    field
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// A rule as bytes.
pub fn emit_rule(rule: &Rule) -> [u8; RULE_LEN] {
    let mut flags = 0;
    for (flag, set) in
        [(FLAG_DUAL_STACK, rule.listen.is_none()), (FLAG_WEAK, rule.weak), (FLAG_SCAN, rule.auto)]
    {
        flags |= if set { flag } else { 0 };
    }
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let protocol = match rule.protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
        Protocol::Echo => libc::IPPROTO_ICMP, // nobody makes such a rule
    };
    let mut bytes = [0; RULE_LEN];
    let fields = octets(rule.listen.unwrap_or(any))
        .into_iter()
        .chain(octets(rule.target.unwrap_or(any)))
        .chain(padded::<INTERFACE_NAME_SIZE>(rule.ifname.as_deref().unwrap_or_default()))
        .chain([rule.first, rule.last, rule.to].into_iter().flat_map(u16::to_be_bytes))
        .chain([protocol.to_le_bytes()[0], flags]);
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

/// What bytes of [`RULE_LEN`] say.
///
/// # Errors
/// No rule is like that. Whether it makes sense where it is to be used is not asked.
pub fn parse_rule(mut bytes: &[u8]) -> Result<Rule, Malformed> {
    let bytes = &mut bytes;
    let addr = Ipv6Addr::from(take::<16>(bytes)?);
    let target = IpAddr::V6(Ipv6Addr::from(take::<16>(bytes)?)).to_canonical();
    let ifname = take::<INTERFACE_NAME_SIZE>(bytes)?;
    let (first, last) = (u16::from_be_bytes(take(bytes)?), u16::from_be_bytes(take(bytes)?));
    let to = u16::from_be_bytes(take(bytes)?);
    let [protocol, flags] = take::<2>(bytes)?;

    let dual_stack = flags & FLAG_DUAL_STACK != 0;
    let unknown = flags & !(FLAG_DUAL_STACK | FLAG_WEAK | FLAG_SCAN) != 0;
    if unknown || (dual_stack && !addr.is_unspecified()) {
        return Err(Malformed::Flags(flags));
    }
    let more = last.checked_sub(first).ok_or(Malformed::Ports)?;
    if first == 0 || to == 0 || to.checked_add(more).is_none() {
        return Err(Malformed::Ports);
    }
    let ifname = match text(&ifname) {
        Some("") => None,
        Some(name) if is_interface_name(name) => Some(name.to_owned()),
        _ => return Err(Malformed::Interface),
    };
    let none = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    Ok(Rule {
        listen: (!dual_stack).then_some(IpAddr::V6(addr).to_canonical()),
        ifname,
        protocol: match i32::from(protocol) {
            libc::IPPROTO_TCP => Protocol::Tcp,
            libc::IPPROTO_UDP => Protocol::Udp,
            _ => return Err(Malformed::Protocol(protocol)),
        },
        first,
        last,
        target: Some(target).filter(|target| !none.contains(target)),
        to,
        weak: flags & FLAG_WEAK != 0,
        auto: flags & FLAG_SCAN != 0,
    })
}

fn emit_tables<A: Head>(tables: &[Table<A>], into: &mut Vec<u8>) {
    for table in tables {
        into.push(table.pif);
        table.about.emit(into);
        let count = u32::try_from(table.rules.len()).unwrap_or(u32::MAX);
        into.extend(count.to_be_bytes());
        table.rules.iter().for_each(|rule| into.extend(emit_rule(rule)));
    }
    into.push(0);
}

/// What a daemon says to a new client.
pub fn emit_greeting(tables: &[Table<About>]) -> Vec<u8> {
    let mut bytes = HELLO.to_vec();
    bytes.extend(VERSION.to_be_bytes());
    for size in [PIF_NAME_SIZE, INTERFACE_NAME_SIZE] {
        bytes.extend(u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    }
    emit_tables(tables, &mut bytes);
    bytes
}

/// What a client sends to have other rules.
pub fn emit_update(tables: &[Table]) -> Vec<u8> {
    let mut bytes = Vec::new();
    emit_tables(tables, &mut bytes);
    bytes
}

/// Bytes that come in pieces, until there are enough for the next part.
#[derive(Debug, Default)]
struct Gather(Vec<u8>);

impl Gather {
    /// Takes what is missing to `len` bytes from `input`; hands them out when they are complete.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> Option<Vec<u8>> {
        let missing = len.saturating_sub(self.0.len()).min(input.len());
        let (piece, rest) = input.split_at_checked(missing)?;
        self.0.extend_from_slice(piece);
        *input = rest;
        (self.0.len() >= len).then(|| std::mem::take(&mut self.0))
    }
}

/// Where in the tables a decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pif,
    Head(u8),
    Rules(u32),
    End,
}

/// Reads tables, up to their end.
#[derive(Debug)]
struct Tables<A> {
    place: Place,
    gather: Gather,
    tables: Vec<Table<A>>,
}

impl<A: Head> Tables<A> {
    const fn new() -> Self {
        Self { place: Place::Pif, gather: Gather(Vec::new()), tables: Vec::new() }
    }

    /// Takes `input` up to the end of the tables, which are handed out when it is reached.
    fn push(&mut self, input: &mut &[u8]) -> Result<Option<Vec<Table<A>>>, Malformed> {
        loop {
            let len = match self.place {
                Place::Pif => 1,
                Place::Head(_) => A::LEN + 4,
                Place::Rules(_) => RULE_LEN,
                Place::End => return Ok(Some(std::mem::take(&mut self.tables))),
            };
            let Some(part) = self.gather.fill(input, len) else { return Ok(None) };
            self.place = self.next(&part)?;
        }
    }

    fn next(&mut self, part: &[u8]) -> Result<Place, Malformed> {
        match self.place {
            Place::Pif => match part.first() {
                None | Some(0) => Ok(Place::End),
                Some(pif) if self.tables.iter().any(|table| table.pif == *pif) => {
                    Err(Malformed::TableTwice(*pif))
                }
                Some(pif) => Ok(Place::Head(*pif)),
            },
            Place::Head(pif) => {
                let (about, mut count) = part.split_at_checked(A::LEN).ok_or(Malformed::Short)?;
                let count = u32::from_be_bytes(take(&mut count)?);
                let room =
                    MAX_TOTAL.saturating_sub(self.tables.iter().map(|t| t.rules.len()).sum());
                if usize::try_from(count).map_or(true, |count| count > room.min(MAX_RULES)) {
                    return Err(Malformed::TooManyRules(count));
                }
                self.tables.push(Table { pif, about: A::parse(about)?, rules: Vec::new() });
                Ok(after(count))
            }
            Place::Rules(left) => {
                let table = self.tables.last_mut().ok_or(Malformed::Short)?;
                table.rules.push(parse_rule(part)?);
                Ok(after(left.saturating_sub(1)))
            }
            Place::End => Ok(Place::End),
        }
    }
}

const fn after(left: u32) -> Place {
    if left == 0 { Place::Pif } else { Place::Rules(left) }
}

/// Reads what a daemon says to a new client.
#[derive(Debug)]
pub struct Greeting {
    hello: Option<Gather>,
    tables: Tables<About>,
}

impl Greeting {
    /// Nothing has come yet.
    pub const fn new() -> Self {
        Self { hello: Some(Gather(Vec::new())), tables: Tables::new() }
    }

    /// Takes the next bytes; returns the tables when that was all of them.
    ///
    /// # Errors
    /// This is no daemon that we understand. More bytes will not help.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Vec<Table<About>>>, Malformed> {
        if let Some(gather) = &mut self.hello {
            // Someone else's first bytes are enough to tell; the rest may never come.
            let start = gather.0.iter().chain(bytes).zip(&HELLO);
            if start.into_iter().any(|(came, expected)| came != expected) {
                return Err(Malformed::Magic);
            }
            let Some(hello) = gather.fill(&mut bytes, HELLO_LEN) else { return Ok(None) };
            check_hello(&hello)?;
            self.hello = None;
        }
        match self.tables.push(&mut bytes)? {
            Some(_) if !bytes.is_empty() => Err(Malformed::Excess),
            tables => Ok(tables),
        }
    }
}

impl Default for Greeting {
    fn default() -> Self {
        Self::new()
    }
}

fn check_hello(hello: &[u8]) -> Result<(), Malformed> {
    let mut numbers = hello.get(HELLO.len()..).ok_or(Malformed::Short)?;
    let version = u32::from_be_bytes(take(&mut numbers)?);
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    for size in [PIF_NAME_SIZE, INTERFACE_NAME_SIZE] {
        if u32::try_from(size) != Ok(u32::from_be_bytes(take(&mut numbers)?)) {
            return Err(Malformed::Sizes);
        }
    }
    Ok(())
}

/// Reads what a client sends.
#[derive(Debug)]
pub struct Update {
    tables: Tables<()>,
}

impl Update {
    /// Nothing has come yet.
    pub const fn new() -> Self {
        Self { tables: Tables::new() }
    }

    /// Takes the next bytes; returns the tables when that was all of them. What stands behind is
    /// not looked at.
    ///
    /// # Errors
    /// No such update can be. More bytes will not help.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Vec<Table>>, Malformed> {
        self.tables.push(&mut bytes)
    }

    /// Whether a part of an update has come.
    pub fn has_begun(&self) -> bool {
        self.tables.place != Place::Pif || !self.tables.tables.is_empty()
    }
}

impl Default for Update {
    fn default() -> Self {
        Self::new()
    }
}

/// What became of an update: warnings, if any, or why the rules are as they were.
pub type Outcome = Result<String, String>;

/// The result of an update, as bytes.
pub fn emit_result(outcome: &Outcome) -> Vec<u8> {
    let (Ok(text) | Err(text)) = outcome;
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end));
    let text = text.get(..end.unwrap_or(0)).unwrap_or_default();
    let mut bytes = RESULT.to_vec();
    bytes.extend(u32::from(outcome.is_err()).to_be_bytes());
    bytes.extend(u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Reads the result of an update.
#[derive(Debug, Default)]
pub struct ResultReader {
    gather: Gather,
    head: Option<(u32, usize)>,
}

impl ResultReader {
    /// Takes the next bytes; returns the result when that was all of it.
    ///
    /// # Errors
    /// This is something else.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Outcome>, Malformed> {
        let (status, len) = match self.head {
            Some(head) => head,
            None => {
                let Some(head) = self.gather.fill(&mut bytes, RESULT_LEN) else { return Ok(None) };
                *self.head.insert(result_head(&head)?)
            }
        };
        let Some(text) = self.gather.fill(&mut bytes, len) else { return Ok(None) };
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Some(if status == 0 { Ok(text) } else { Err(text) }))
    }
}

fn result_head(mut head: &[u8]) -> Result<(u32, usize), Malformed> {
    if take::<8>(&mut head)? != RESULT {
        return Err(Malformed::Magic);
    }
    let status = u32::from_be_bytes(take(&mut head)?);
    let len = usize::try_from(u32::from_be_bytes(take(&mut head)?));
    match len {
        Ok(len) if len <= MAX_TEXT => Ok((status, len)),
        _ => Err(Malformed::Excess),
    }
}

#[cfg(test)]
mod tests;
