//! `wattle-agent run`, from start to end. The loop itself is in `agent`.

mod agent;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tracing::{info, warn};
use wattle_mesh::keys::node_keys::NodeKeys;

use self::agent::{Agent, Ended};
use crate::{
    config::Paths,
    control::{Control, Request},
    doctor::Examined,
    follow,
    host::Host,
    identity::{Membership, Slot},
    interface_lock::InterfaceLock,
    kernel::Kernel,
    metrics::Metrics,
    output,
    status::NOT_A_NODE,
    store::Store,
    supervisor::Supervisor,
    underlay::UnderlayStore,
};

/// How often a machine that is not a node looks whether it has become one.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn run(paths: &Paths, metrics: Option<SocketAddr>) -> anyhow::Result<()> {
    let store = Store::open(&paths.state_dir)?;
    let _alone = store.lock()?;
    let lock = Arc::new(InterfaceLock::new(paths, &store)?);
    // Where another agent has it, the loop tries again, and tells.
    if let Err(problem) = lock.hold() {
        warn!("{}", problem.words);
    }
    let mut control = Control::open(paths);
    let mut stop = Stop::new()?;
    let metrics = match metrics {
        Some(address) => Some(Arc::new(Metrics::serve(address).await?)),
        None => None,
    };
    // The agent is ready when the tunnels that it knows from disk are up: at boot, the network
    // waits for that (packaging/systemd).
    let mut supervisor = Supervisor::new();
    // What the host reaches before it hears of the mesh. Where it has, its disk tells.
    let kernel = Kernel::new(paths.interface.clone(), &store)?;
    let underlay = UnderlayStore::open(&kernel, &store, &[]);
    let looked = async {
        if matches!(follow::load_view(&store), Ok(None)) {
            underlay.look_at_resolvers().await;
        }
    };
    let joined = wait_for_join(&store, &mut control, &mut supervisor);
    let (node_keys, mut membership) = tokio::select! {
        (joined, ()) = async { tokio::join!(joined, looked) } => joined?,
        () = stop.asked() => return Ok(()),
    };
    let mut node_keys = Arc::new(node_keys);
    loop {
        let mut agent = Agent::new(
            paths,
            store.clone(),
            Arc::clone(&lock),
            node_keys,
            membership,
            metrics.clone(),
        )?;
        agent.start_from_disk().await;
        match agent.run(&mut control, &mut stop, &mut supervisor).await {
            Ended::Stopped => break,
            Ended::Anew(keys, as_member) => (node_keys, membership) = (keys, *as_member),
        }
    }
    info!("stopped; the tunnels stay up");
    Ok(())
}

pub(crate) async fn down(paths: &Paths) -> anyhow::Result<()> {
    let store = Store::open(&paths.state_dir)?;
    let _alone = store
        .lock()
        .context("an agent is running here and would restore everything: stop it first")?;
    let gone = Host::new(paths, &store, &[])?.down().await?;
    if gone.is_empty() {
        output::line("nothing to remove");
    }
    gone.into_iter().for_each(output::line);
    Ok(())
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn wait_for_join(
    store: &Store,
    control: &mut Control,
    supervisor: &mut Supervisor,
) -> anyhow::Result<(NodeKeys, Membership)> {
    let mut told = false;
    loop {
        if let Some((node_keys, Some(membership))) = Slot::Present.load(store)? {
            return Ok((node_keys, membership));
        }
        supervisor.alive();
        if !told {
            info!("this machine is not a node yet: waiting for `wattle-agent join`");
            told = true;
        }
        tokio::select! {
            () = sleep(JOIN_POLL_INTERVAL) => {}
            // Of a doctor it knows nothing that the command would not find.
            call = control.asked() => if call.request == Request::Doctor {
                call.answer(Ok(None::<Examined>));
            } else {
                call.answer(Err::<(), _>(NOT_A_NODE.to_owned()));
            },
        }
    }
}
