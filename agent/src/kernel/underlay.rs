//! Routes past the tunnel, which the agent remembers that it made.

use std::net::IpAddr;

use anyhow::Context;
use wattle_mesh::{
    diagnose::lan::{Led, Question},
    host::way::{ForeignRoute, RoutingRule, Way},
};

use super::{Kernel, link::Tables};

impl Kernel {
    /// The host's own routes in the main table: neither those over the agent's interface nor those
    /// that the agent made past it.
    pub(crate) async fn foreign_routes(&self) -> anyhow::Result<Vec<ForeignRoute>> {
        let tables = Tables::open()?;
        let but = tables.find(&self.interface).await?.map(|found| found.index);
        let made = self.owned.read(|owned| owned.underlay.clone());
        tables.foreign_routes(but, &made).await
    }

    /// Whether packets to the address leave the host by another interface than the tunnel's; `None`
    /// where it has no route there.
    pub(crate) async fn is_outside(&self, address: IpAddr) -> anyhow::Result<Option<bool>> {
        let tables = Tables::open()?;
        let tunnel = tables.find(&self.interface).await?.map(|found| found.index);
        let output = tables.output_to(address).await?;
        Ok(output.map(|output| Some(output) != tunnel))
    }

    /// Routing rules that may concern packets with marks.
    pub(crate) async fn routing_rules(&self) -> anyhow::Result<Vec<RoutingRule>> {
        Tables::open()?.routing_rules().await
    }

    /// Where each packet would be led.
    pub(crate) async fn led(
        &self,
        questions: Vec<Question>,
    ) -> anyhow::Result<Vec<(Question, Led)>> {
        let tables = Tables::open()?;
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            if let Some(led) = tables.led(&question).await? {
                answers.push((question, led));
            }
        }
        Ok(answers)
    }

    pub(super) async fn set_underlay_route(
        &self,
        address: IpAddr,
        way: &Way,
    ) -> anyhow::Result<()> {
        self.owned.change(|owned| {
            owned.underlay.insert(address);
        });
        let set = Tables::open()?.set_underlay_route(address, way).await;
        set.with_context(|| format!("cannot route {address} {way}"))
    }

    /// Whether there was one.
    pub(super) async fn remove_underlay_route(&self, address: IpAddr) -> anyhow::Result<bool> {
        let removed = Tables::open()?.remove_underlay_route(address).await;
        let was_there = removed
            .with_context(|| format!("cannot remove the route to {address} past the tunnel"))?;
        self.owned.change(|owned| {
            owned.underlay.remove(&address);
        });
        Ok(was_there)
    }

    /// Removes all of them. Where there was a route.
    pub(super) async fn remove_underlay_routes(&self) -> anyhow::Result<Vec<IpAddr>> {
        let mut gone = Vec::new();
        for address in self.owned.read(|owned| owned.underlay.clone()) {
            if self.remove_underlay_route(address).await? {
                gone.push(address);
            }
        }
        Ok(gone)
    }
}
