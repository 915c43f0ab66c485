//! The packages and their units below a real systemd, in machines of their own that can reboot.
//!
//! Each test is a job of a shell in the folder beside this file, behind its `prelude.sh`;
//! `docs/kernel.md` tells how such a machine works. It takes root.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use wattle_lab::{binaries, kernel::Debian, patience, times};

/// Stands before each job.
const PRELUDE: &str = include_str!("systemd/prelude.sh");
/// Names of tests, with the names of their machines and their jobs; the longest first.
const TESTS: &[(&str, &str, &str)] = &[
    (
        "what_the_guides_of_installing_and_upgrading_say_is_typed_and_works",
        "install",
        include_str!("systemd/install.sh"),
    ),
    (
        "what_the_guide_of_backups_says_is_typed_and_works",
        "backup",
        include_str!("systemd/backup.sh"),
    ),
    (
        "what_the_guide_of_several_coordinators_says_is_typed_and_agents_go_on_with_the_second",
        "coordinators",
        include_str!("systemd/coordinators.sh"),
    ),
    (
        "what_the_guide_of_losses_says_is_typed_and_works",
        "disaster",
        include_str!("systemd/disaster.sh"),
    ),
    (
        "containers_of_the_packages_are_up_once_they_are_ready_and_serve_gateways_of_other_hosts",
        "containers",
        include_str!("systemd/containers.sh"),
    ),
    (
        "packages_are_installed_upgraded_and_downgraded_without_loss_and_a_purge_leaves_nothing",
        "packages",
        include_str!("systemd/packages.sh"),
    ),
    (
        "routes_that_keep_lans_apart_are_told_everywhere_within_ten_seconds_and_their_remedy_helps",
        "lans",
        include_str!("systemd/lans.sh"),
    ),
    (
        "what_a_host_and_its_programs_do_to_lans_is_told_and_its_remedy_helps",
        "hosts",
        include_str!("systemd/hosts.sh"),
    ),
    (
        "rules_of_iptables_legacy_are_read_by_the_packaged_agent_and_its_remedy_helps",
        "legacy",
        include_str!("systemd/legacy.sh"),
    ),
    (
        "doctor_names_each_firewall_that_is_in_the_way_and_its_remedy_helps",
        "firewalls",
        include_str!("systemd/firewalls.sh"),
    ),
    (
        "hosts_that_answer_to_another_router_and_an_endpoint_that_leads_elsewhere_are_told",
        "replies",
        include_str!("systemd/replies.sh"),
    ),
    (
        "a_path_too_small_for_large_packets_is_told_within_ten_seconds_and_its_remedy_helps",
        "sizes",
        include_str!("systemd/sizes.sh"),
    ),
    (
        "what_else_keeps_gateways_apart_is_told_and_its_remedy_helps",
        "others",
        include_str!("systemd/others.sh"),
    ),
    (
        "nothing_that_ends_the_agent_ends_the_userspace_device_or_costs_a_packet",
        "device",
        include_str!("systemd/device.sh"),
    ),
    (
        "the_packaged_units_may_do_little_and_leave_no_core_files",
        "rights",
        include_str!("systemd/rights.sh"),
    ),
    (
        "both_units_start_and_come_back_when_they_hang",
        "units",
        include_str!("systemd/units.sh"),
    ),
    (
        "commands_work_beside_the_unit_for_root_its_user_and_its_group_and_for_nobody_else",
        "commands",
        include_str!("systemd/commands.sh"),
    ),
    (
        "after_a_reboot_the_tunnels_are_up_before_the_network_is",
        "reboot",
        include_str!("systemd/reboot.sh"),
    ),
    (
        "power_that_fails_right_after_a_site_joined_takes_nothing",
        "power",
        include_str!("systemd/power.sh"),
    ),
    (
        "an_agent_that_cannot_start_does_not_keep_the_network_away",
        "stuck",
        include_str!("systemd/stuck.sh"),
    ),
];
/// How many machines run side by side, of one processor each.
const SIDE_BY_SIDE: usize = 3;
/// How long a machine may take, whatever it does.
const LIMIT: f64 = 480.0;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    let prepared = if arguments.list {
        Ok(None)
    } else {
        prepare().map(Some)
    };
    let debian = match prepared {
        Ok(debian) => Arc::new(debian),
        Err(error) => {
            say(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let trials = TESTS.iter().map(|(test, machine, job)| {
        let debian = Arc::clone(&debian);
        Trial::test(*test, move || {
            times::timed(test, || run(debian.as_ref().as_ref(), machine, job))
                .map_err(|error| format!("{error:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    say(&times::slowest());
    conclusion.exit_code()
}

fn prepare() -> Result<Debian> {
    binaries::build()?;
    let debian = Debian::prepare()?;
    say(&format!(
        "systemd ground; logs: {}",
        debian.folder().display()
    ));
    Ok(debian)
}

fn run(debian: Option<&Debian>, machine: &str, job: &str) -> Result<()> {
    let debian = debian.context("no machines were prepared")?;
    let ended = debian.run(machine, &format!("{PRELUDE}{job}"), patience(LIMIT))?;
    ensure!(
        ended.success,
        "{}\nlogs: {}",
        ended.output.trim(),
        debian.folder().display()
    );
    Ok(())
}

fn say(line: &str) {
    // Whoever closed the output does not want to know.
    let _ = writeln!(stdout(), "{line}");
}
