//! The process on either end of a flow, as [`enter`](crate::enter) starts it.

use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::wait::{patience, wait_for};

/// The part of the program that sends, or, without a destination, echoes.
pub(crate) const ROLE: &str = "flow";
/// Where the sender sends to.
pub(super) const TO: &str = "WATTLE_LAB_FLOW_TO";
/// Port of the echo.
pub(super) const PORT: u16 = 7007;
/// Time between two datagrams.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// The process, as its part of the environment says.
pub(crate) fn main() -> Result<()> {
    match env::var(TO) {
        Ok(to) => send(to.parse()?),
        Err(_) => echo(),
    }
}

/// Sends each datagram back with the address that it came from.
fn echo() -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    say("listening")?;
    let mut buffer = [0; 4];
    loop {
        // An ICMP error about an answer is no reason to stop answering.
        if let Ok((4, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[buffer, from.ip().octets()].concat(), from);
        }
    }
}

/// Sends until standard input closes.
fn send(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // For each number, which is the index, whether it came back.
    let back: Arc<Mutex<Vec<bool>>> = Arc::default();
    thread::spawn({
        let (socket, back) = (socket.try_clone()?, Arc::clone(&back));
        move || receive(&socket, &back)
    });
    let over = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let over = Arc::clone(&over);
        move || {
            // Whatever ends the input ends the stream.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        }
    });

    let start = Instant::now();
    let mut number = 0_u32;
    while !over.load(Ordering::Relaxed) {
        lock(&back).push(false);
        // A refusal by the host itself counts as a loss, as it is to whoever sends.
        let _ = socket.send_to(&number.to_be_bytes(), to);
        number += 1;
        say(&format!("sent {number}"))?;
        thread::sleep((PACE * number).saturating_sub(start.elapsed()));
    }
    // Those that do not come back in time are the outcome.
    let _ = wait_for("all come back", patience(2.0), || {
        if lock(&back).iter().all(|came| *came) {
            Ok(())
        } else {
            bail!("not yet")
        }
    });
    let back = lock(&back);
    let lost: Vec<String> = back
        .iter()
        .enumerate()
        .filter(|(_, came)| !**came)
        .map(|(number, _)| number.to_string())
        .collect();
    say(&format!("outcome {} {}", back.len(), lost.join(" ")))
}

/// Notes what comes back, and says once from which address the other end got it.
fn receive(socket: &UdpSocket, back: &Mutex<Vec<bool>>) {
    let mut first = true;
    let mut buffer = [0; 8];
    loop {
        if !matches!(socket.recv_from(&mut buffer), Ok((8, _))) {
            continue;
        }
        let [a, b, c, d, source @ ..] = buffer;
        if let Some(came) = lock(back).get_mut(u32::from_be_bytes([a, b, c, d]) as usize) {
            *came = true;
        }
        if first {
            first = false;
            // Whoever does not read this does not wait for it.
            let _ = say(&format!("from {}", Ipv4Addr::from(source)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().map_err(Into::into)
}
