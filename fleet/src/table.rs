//! The table that a measurement prints.

use comfy_table::{Table, presets};

use crate::{coordinator::Coordinators, figures::Usages};

/// What was measured, line by line.
#[derive(Default)]
pub(crate) struct Rows(Vec<[String; 2]>);

impl Rows {
    pub(crate) fn add(&mut self, what: &str, figure: String) {
        self.0.push([what.to_owned(), figure]);
    }

    /// What each of some things took of the processors since `before`, and whether the fleet itself
    /// was in the way of more.
    pub(crate) fn add_processor_time(
        &mut self,
        of: &str,
        before: &Usages,
        coordinators: &Coordinators,
        count: u32,
    ) {
        let pids = coordinators.pids();
        if pids.is_empty() {
            return;
        }
        let after = Usages::of(&pids);
        self.add(
            &format!("processor time for each {of}: coordinators / Postgres / fleet"),
            after.cpu_since(before, count),
        );
        let share = after.fleets_share_since(before);
        if share > 0.5 {
            self.add(
                "bottleneck",
                format!(
                    "the fleet itself, with {:.0} % of the processor time of this",
                    share * 100.0
                ),
            );
        }
    }

    pub(crate) fn table(self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for row in self.0 {
            table.add_row(row);
        }
        table
    }
}
