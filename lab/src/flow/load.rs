//! Flows that take all that there is of a way.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    host::Host,
    wait::{patience, wait_for},
};

const PORT: u16 = 7070;
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes in one call.
const PIECE: usize = 64 << 10;

/// A stream of TCP that sends as fast as it can.
#[derive(Debug)]
pub struct Load {
    stream: TcpStream,
    received: Arc<AtomicU64>,
    ends: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts a stream to `address`, which is on the host `to`, and returns when it has a pace.
    pub fn start(from: &Host, to: &Host, address: Ipv4Addr) -> Result<Self> {
        let address = SocketAddr::from((address, PORT));
        let listener = to.in_its_network(|| Ok(TcpListener::bind(address)?))?;
        let stream = from.in_its_network(|| Ok(TcpStream::connect_timeout(&address, CONNECT)?))?;
        let (accepted, _) = listener.accept()?;
        let received = Arc::default();
        let ends = vec![
            thread::spawn({
                let stream = stream.try_clone()?;
                move || send(stream)
            }),
            thread::spawn({
                let received = Arc::clone(&received);
                move || receive(accepted, &received)
            }),
        ];
        let load = Self {
            stream,
            received,
            ends,
        };
        load.more(16 << 20)?;
        Ok(load)
    }

    /// Waits until so many more bytes have come.
    pub fn more(&self, bytes: u64) -> Result<()> {
        let goal = self.received.load(Ordering::Relaxed) + bytes;
        wait_for("more of the stream comes", patience(30.0), || {
            let received = self.received.load(Ordering::Relaxed);
            ensure!(received >= goal, "{received} of {goal} bytes");
            Ok(())
        })
    }

    /// Ends it; it has to have come through all the time.
    pub fn finish(self) -> Result<()> {
        self.more(1)?;
        self.stream.shutdown(std::net::Shutdown::Both)?;
        join(self.ends)
    }
}

/// Waits for the ends of a flow, and gives the first failure.
fn join(ends: impl IntoIterator<Item = JoinHandle<Result<()>>>) -> Result<()> {
    ends.into_iter().try_for_each(|end| {
        end.join()
            .unwrap_or_else(|_| bail!("an end of the flow panicked"))
    })
}

fn send(mut stream: TcpStream) -> Result<()> {
    let piece = vec![0; PIECE];
    loop {
        match stream.write(&piece) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("the stream broke"),
        }
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) => received.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the stream broke"),
        };
    }
}

/// Most datagrams that are on their way: fewer than any buffer on it holds. The receiver's socket has
/// room for 45 of those that the kernel's WireGuard hands over, of 4.6 KiB each to it.
const WINDOW: u64 = 20;
/// Seconds that the receiver waits for the next one. A handshake that is lost is begun again after
/// five.
const SILENCE_S: f64 = 3.0;

/// Numbered datagrams of many sizes, as fast as they come. Each has to come, and in its order: the
/// sender waits for the receiver, so that no buffer overflows.
#[derive(Debug)]
pub struct Numbered {
    shared: Arc<Shared>,
    ends: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    came: AtomicU64,
    is_ending: AtomicBool,
    is_broken: AtomicBool,
}

impl Numbered {
    /// Starts them from one host to `address`, which is on another.
    pub fn start(from: &Host, to: &Host, address: IpAddr) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let receiver = to.in_its_network(|| Ok(UdpSocket::bind((address, 0))?))?;
        receiver.set_read_timeout(Some(patience(SILENCE_S)))?;
        let to = receiver.local_addr()?;
        let any: IpAddr = if address.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0_u16; 8].into()
        };
        let sender = from.in_its_network(|| Ok(UdpSocket::bind((any, 0))?))?;
        sender.connect(to)?;
        let ends = vec![
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.send(&sender)
            }),
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let received = shared.receive(&receiver);
                    let is_broken = received.is_err();
                    shared.is_broken.store(is_broken, Ordering::Release);
                    received
                }
            }),
        ];
        Ok(Self { shared, ends })
    }

    /// Waits until so many more have come, or one has not.
    pub fn more(&self, datagrams: u64) -> Result<()> {
        let goal = self.shared.came.load(Ordering::Acquire) + datagrams;
        wait_for("more datagrams come", patience(60.0), || {
            let came = self.shared.came.load(Ordering::Acquire);
            let is_broken = self.shared.is_broken.load(Ordering::Acquire);
            ensure!(came >= goal || is_broken, "{came} of {goal}");
            Ok(())
        })
    }

    /// Ends them, which fails if one was lost or came out of order; gives how many there were.
    pub fn finish(self) -> Result<u64> {
        self.shared.is_ending.store(true, Ordering::Release);
        // What the receiver says is why the sender ended.
        join(self.ends.into_iter().rev())?;
        let Shared { sent, came, .. } = &*self.shared;
        let (sent, came) = (sent.load(Ordering::Acquire), came.load(Ordering::Acquire));
        ensure!(sent == came, "the last {} of {sent} were lost", sent - came);
        Ok(sent)
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket) -> Result<()> {
        let mut number = 0;
        while !self.is_ending.load(Ordering::Acquire) && !self.is_broken.load(Ordering::Acquire) {
            if number >= self.came.load(Ordering::Acquire) + WINDOW {
                thread::yield_now();
                continue;
            }
            let mut datagram = vec![0; size(number)];
            datagram[..8].copy_from_slice(&number.to_le_bytes());
            socket.send(&datagram).context("sending a datagram")?;
            number += 1;
            self.sent.store(number, Ordering::Release);
        }
        // The end.
        socket.send(&[]).context("sending a datagram")?;
        Ok(())
    }

    fn receive(&self, socket: &UdpSocket) -> Result<()> {
        let mut datagram = [0; 2048];
        for number in 0.. {
            let bytes = socket
                .recv(&mut datagram)
                .with_context(|| format!("{number} datagrams came, and then none"))?;
            if bytes == 0 {
                break;
            }
            let found = u64::from_le_bytes(*datagram.first_chunk().context("eight bytes")?);
            ensure!(
                found == number && bytes == size(number),
                "datagram {found}, of {bytes} bytes, came after {number} others"
            );
            self.came.store(number + 1, Ordering::Release);
        }
        Ok(())
    }
}

/// Bytes of a datagram: runs of one size, and each time another one.
fn size(number: u64) -> usize {
    8 + usize::try_from(number / 7 * 131 % 1380).unwrap_or(0)
}
