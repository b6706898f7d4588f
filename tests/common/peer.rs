//! The two ends of test traffic: a server that does what a connection asks of it, and clients.
//!
//! The same code plays the far end, as threads of the test inside a namespace, and the guest's
//! end, as a process: the test binary runs in the guest with a role in `PASST_PEER` (see
//! [`entry`]). Every byte is compared with a sequence that both ends can compute; the first
//! difference is reported with its offset.
//!
//! A connection starts with a request of 17 bytes: an operation, a seed, a length.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Error, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// How long one read or write may take. Less than what the test grants a whole command, so that
/// the peer can say what it waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a connection is for. The number is what goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// The client sends and closes its direction; the server checks and answers with a verdict.
    Take = 1,
    /// The server sends and closes; the client checks.
    Give = 2,
    /// Both send at once, close, and check.
    Both = 3,
    /// The server sends and closes its direction first; the client, having seen the end, sends.
    ServerEndsFirst = 4,
    /// What became of the connection with this seed: waits for it to end.
    Verdict = 5,
    /// The server answers at once; the client sends and then resets the connection.
    ClientResets = 6,
    /// The server resets the connection.
    ServerResets = 7,
    /// The server answers when as many connections as `length` says wait with this seed.
    Gather = 8,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Take,
        Self::Give,
        Self::Both,
        Self::ServerEndsFirst,
        Self::Verdict,
        Self::ClientResets,
        Self::ServerResets,
        Self::Gather,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| *operation as u8 == byte)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| format!("{operation:?}") == name)
    }
}

const GOOD: u8 = 1;
const BAD: u8 = 0;

/// For the test named `peer` of each test crate that uses guests: without a role, checks that both
/// ends agree over the loopback interface; with one, plays it.
///
/// Roles: `serve PORT FIFO`, `OPERATION ADDRESS:PORT LENGTH SEED`, `gather ADDRESS:PORT COUNT SEED`,
/// `udp ADDRESS:PORT LENGTH...`, `refused ADDRESS:PORT`, `udp-refused ADDRESS:PORT`.
pub fn entry() {
    match std::env::var("PASST_PEER") {
        Ok(role) => play(&role).unwrap_or_else(|error| panic!("{role}: {error}")),
        Err(_) => agree_over_loopback(),
    }
}

fn agree_over_loopback() {
    let server = Server::start(0).expect("cannot listen");
    let server = SocketAddr::from((Ipv6Addr::LOCALHOST, server));
    for (seed, operation) in (1..).zip(Operation::ALL) {
        match operation {
            Operation::Verdict | Operation::Gather => {}
            _ => exchange(server, operation, 100_000, seed).expect("the ends disagree"),
        }
    }
    gather(server, 20, 1).expect("cannot gather");
    udp_echo(server, &[1, 1400, 9000]).expect("no echo");
    let wrong = SplitMix::new(7);
    let error = check(&mut io::repeat(0), wrong, 10).expect_err("zeros are not the sequence");
    assert!(error.to_string().contains("offset 0"), "{error}");
}

fn play(role: &str) -> io::Result<()> {
    let words: Vec<&str> = role.split(' ').collect();
    match words.as_slice() {
        ["serve", port, fifo] => {
            Server::start(number(port)?)?;
            fs::write(fifo, "listening\n")?;
            loop {
                std::thread::park();
            }
        }
        ["gather", server, count, seed] => gather(address(server)?, number(count)?, number(seed)?),
        ["udp", server, lengths @ ..] => {
            let lengths: io::Result<Vec<usize>> = lengths.iter().map(|word| number(word)).collect();
            udp_echo(address(server)?, &lengths?)
        }
        ["refused", server] => expect_refused(TcpStream::connect(address(server)?).map(drop)),
        ["udp-refused", server] => udp_refused(address(server)?),
        [operation, server, length, seed] => {
            let operation = Operation::from_name(operation).ok_or_else(|| bad("no such role"))?;
            exchange(address(server)?, operation, number(length)?, number(seed)?)
        }
        _ => Err(bad("no such role")),
    }
}

/// The server: TCP and UDP at one port, all addresses of both families. Ends with the process.
#[derive(Default)]
pub struct Server {
    verdicts: Mutex<HashMap<u64, u8>>,
    waiting: Mutex<HashMap<u64, Vec<TcpStream>>>,
    changed: Condvar,
}

impl Server {
    /// Listens in the network namespace of the calling thread; gives the port.
    pub fn start(port: u16) -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
        // The library's backlog of 128 is less than the connections that a test opens at once.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1024)?)?;
        let port = listener.local_addr()?.port();
        let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        let server = Arc::new(Self::default());
        spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = Self::admit(&server, stream);
            }
        });
        spawn(move || -> io::Result<()> {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer)?;
                datagrams.send_to(&buffer[..length], from)?;
            }
        });
        Ok(port)
    }

    /// Reads the request, which the client sends at once, and gives the connection a thread; not
    /// so those that gather: hundreds of threads take a guest long.
    fn admit(server: &Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = [0; 17];
        stream.read_exact(&mut request)?;
        let (seed, length) = (word(&request[1..9]), word(&request[9..]));
        let operation = Operation::from_byte(request[0]).ok_or_else(|| bad("no such operation"))?;
        if operation == Operation::Gather {
            return server.gather(stream, length, seed);
        }
        let server = Arc::clone(server);
        spawn(move || server.serve(stream, operation, length, seed));
        Ok(())
    }

    fn serve(&self, mut stream: TcpStream, operation: Operation, length: u64, seed: u64) {
        let result = self.act(&mut stream, operation, length, seed);
        if let Err(error) = &result {
            eprintln!("{operation:?} of {length} bytes: {error}");
        }
        if operation != Operation::Verdict {
            let verdict = if result.is_ok() { GOOD } else { BAD };
            self.verdicts.lock().expect("poisoned").insert(seed, verdict);
            self.changed.notify_all();
        }
    }

    fn act(
        &self,
        stream: &mut TcpStream,
        operation: Operation,
        length: u64,
        seed: u64,
    ) -> io::Result<()> {
        let (up, down) = (SplitMix::new(seed), SplitMix::new(!seed));
        match operation {
            Operation::Take => {
                let result = check(stream, up, length);
                stream.write_all(&[if result.is_ok() { GOOD } else { BAD }])?;
                result
            }
            Operation::Give => send(stream, down, length),
            Operation::Both => both(stream, (down, up), length),
            Operation::ServerEndsFirst => {
                send(stream, down, length)?;
                check(stream, up, length)
            }
            Operation::Verdict => {
                let known = self.verdicts.lock().expect("poisoned");
                let unknown = |known: &mut HashMap<u64, u8>| !known.contains_key(&seed);
                let (known, _) =
                    self.changed.wait_timeout_while(known, PATIENCE, unknown).expect("poisoned");
                stream.write_all(&[known.get(&seed).copied().unwrap_or(BAD)])
            }
            Operation::ClientResets => {
                stream.write_all(&[GOOD])?;
                match check(stream, up, length) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                    other => Err(bad(&format!("no reset but {other:?}"))),
                }
            }
            Operation::ServerResets => reset_on_close(stream),
            Operation::Gather => Err(bad("gathered before")),
        }
    }

    fn gather(&self, stream: TcpStream, count: u64, seed: u64) -> io::Result<()> {
        let mut waiting = self.waiting.lock().expect("poisoned");
        let streams = waiting.entry(seed).or_default();
        streams.push(stream);
        if streams.len() as u64 == count {
            streams.iter_mut().try_for_each(|stream| stream.write_all(&[GOOD]))?;
            streams.clear();
        }
        Ok(())
    }
}

/// One connection to a server; an error says what went wrong at either end.
pub fn exchange(
    server: SocketAddr,
    operation: Operation,
    length: u64,
    seed: u64,
) -> io::Result<()> {
    let mut stream = request(server, operation, length, seed)?;
    let (up, down) = (SplitMix::new(seed), SplitMix::new(!seed));
    match operation {
        Operation::Take => {
            send(&mut stream, up, length)?;
            expect_good(&mut stream)?;
        }
        Operation::Give => check(&mut stream, down, length)?,
        Operation::Both => both(&stream, (up, down), length)?,
        Operation::ServerEndsFirst => {
            check(&mut stream, down, length)?;
            send(&mut stream, up, length)?;
        }
        Operation::Verdict => return expect_good(&mut stream),
        Operation::ClientResets => {
            // A connection that is reset before the server accepts it is none.
            expect_good(&mut stream)?;
            write_sequence(&mut stream, up, length / 2)?;
            reset_on_close(&stream)?;
        }
        Operation::ServerResets => match stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => return Err(bad(&format!("no reset but {other:?}"))),
        },
        Operation::Gather => return Err(bad("use gather()")),
    }
    drop(stream);
    exchange(server, Operation::Verdict, 0, seed)
}

/// Opens `count` connections that are all open at the same time, and ends them.
pub fn gather(server: SocketAddr, count: u64, seed: u64) -> io::Result<()> {
    let open = |_| request(server, Operation::Gather, count, seed);
    let streams: io::Result<Vec<TcpStream>> = (0..count).map(open).collect();
    streams?.iter_mut().try_for_each(expect_good)
}

/// A connection whose request the server has and does not answer before others come: idle.
pub fn idle(server: SocketAddr, seed: u64) -> io::Result<TcpStream> {
    request(server, Operation::Gather, u64::MAX, seed)
}

/// A connection that sends for ever, in a thread; ends with the reason why it could not go on.
pub fn flood(server: SocketAddr, seed: u64) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut stream = request(server, Operation::Take, u64::MAX, seed)?;
    Ok(spawn(move || write_sequence(&mut stream, SplitMix::new(seed), u64::MAX)))
}

/// Expects that the other side resets the connection, once it gets something from us.
pub fn expect_reset(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"are you there?")?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(bad(&format!("no reset but {other:?}"))),
    }
}

/// Sends a datagram of each length and expects it back.
pub fn udp_echo(server: SocketAddr, lengths: &[usize]) -> io::Result<()> {
    let socket = connected_udp(server)?;
    let mut received = vec![0; 1 << 16];
    for (seed, &length) in (1..).zip(lengths) {
        let mut sent = vec![0; length];
        SplitMix::new(seed).fill(&mut sent);
        socket.send(&sent)?;
        let count = socket
            .recv(&mut received)
            .map_err(|error| bad(&format!("no echo of {length} bytes: {error}")))?;
        if received[..count] != sent {
            return Err(bad(&format!("the echo of {length} bytes differs, it has {count}")));
        }
    }
    Ok(())
}

/// Expects the ICMP error for a datagram to a port where nobody listens.
fn udp_refused(server: SocketAddr) -> io::Result<()> {
    let socket = connected_udp(server)?;
    socket.send(b"is anybody there?")?;
    expect_refused(socket.recv(&mut [0]).map(drop))
}

fn connected_udp(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE / 3))?;
    socket.connect(server)?;
    Ok(socket)
}

fn expect_refused(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(bad(&format!("not refused but {other:?}"))),
    }
}

fn request(server: SocketAddr, op: Operation, length: u64, seed: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = [op as u8; 17];
    request[1..9].copy_from_slice(&seed.to_be_bytes());
    request[9..].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&request)?;
    Ok(stream)
}

fn expect_good(stream: &mut TcpStream) -> io::Result<()> {
    let mut verdict = [BAD];
    stream.read_exact(&mut verdict)?;
    match verdict {
        [GOOD] => Ok(()),
        _ => Err(bad("the server says that something is wrong")),
    }
}

fn both(stream: &TcpStream, (ours, theirs): (SplitMix, SplitMix), length: u64) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send(&mut &*stream, ours, length));
        check(&mut &*stream, theirs, length)?;
        sender.join().unwrap_or_else(|_| Err(bad("the sender panicked")))
    })
}

/// A stream whose sending direction can be closed.
trait HalfClose: Write {
    fn end(&mut self) -> io::Result<()>;
}

impl HalfClose for TcpStream {
    fn end(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl HalfClose for &TcpStream {
    fn end(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

fn send(stream: &mut impl HalfClose, sequence: SplitMix, length: u64) -> io::Result<()> {
    write_sequence(stream, sequence, length)?;
    stream.end()
}

fn write_sequence(stream: &mut impl Write, mut from: SplitMix, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let chunk = &mut buffer[..piece(left)];
        from.fill(chunk);
        stream.write_all(chunk)?;
        left -= chunk.len() as u64;
    }
    Ok(())
}

/// Reads to the end and compares: exactly `length` bytes of the sequence.
fn check(stream: &mut impl Read, mut sequence: SplitMix, length: u64) -> io::Result<()> {
    let (mut expected, mut received) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    while offset < length {
        let size = piece(length - offset);
        sequence.fill(&mut expected[..size]);
        stream.read_exact(&mut received[..size]).map_err(|error| {
            Error::new(error.kind(), format!("after offset {offset} of {length}: {error}"))
        })?;
        let differs = expected[..size].iter().zip(&received[..size]).position(|(a, b)| a != b);
        if let Some(index) = differs {
            return Err(bad(&format!("byte at offset {} differs", offset + index as u64)));
        }
        offset += size as u64;
    }
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(bad("more bytes than were sent")),
    }
}

const CHUNK: usize = 1 << 18;

fn piece(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// Makes the coming close send RST instead of FIN.
fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).map_err(Error::from)
}

/// The sequence of bytes: the SplitMix64 generator, which never repeats within a test's length.
struct SplitMix(u64);

impl SplitMix {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Fills whole chunks of a sequence; only the last may have a length that is no multiple of 8.
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bytes = (word ^ (word >> 31)).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

fn number<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| bad(&format!("'{word}' is not a number")))
}

fn address(word: &str) -> io::Result<SocketAddr> {
    word.parse().map_err(|_| bad(&format!("'{word}' is not an address and port")))
}

fn bad(what: &str) -> Error {
    Error::other(what.to_owned())
}
