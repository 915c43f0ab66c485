//! End-to-end tests on real packets, each in a lab of its own, with the two real programs.
//!
//! Each runs where it says something: on this machine, with the device that it has (the kernel's
//! WireGuard or, without the module, the userspace device), in a machine of the kernel ground, or
//! on both. Which and why stands above each list.
//!
//! Logs of each are kept in `target/lab/<test>/`. `cargo test -p wattle-lab --test end_to_end --
//! --list` shows them; a word filters.

// The server's tests look at the same page.
#[path = "../../../server/tests/api/browser.rs"]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod browser;
mod change;
mod device;
mod guide;
mod hostile;
mod input;
mod kernel;
mod laboratory;
mod lock;
mod outage;
mod psk;
mod repair;
mod restored;
mod rotation;
mod see;
mod terminal;
mod trust;
mod underlay;
mod unmanaged;

use std::{
    env,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::Write,
    iter,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;
use wattle_lab::{
    Ground, LabSite, binaries,
    coordinator::make_cluster,
    enter, ground,
    kernel::{self as machine, Machines},
    patience, times,
};
use wattle_wire::admin::Node;

/// A test, which gets a folder of its own for logs.
type Test = fn(&Path) -> Result<()>;

/// Names of functions, which are the names of the tests, with the functions.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => { &[$((stringify!($name), $module::$name as Test)),*] };
}

/// What waits for a real rekeying, more than two minutes: begun first, it is done when the others
/// are. On both grounds: how a session is renewed is the device's own affair.
const LONG: &[(&str, Test)] = tests![psk::the_session_that_is_renewed_with_another_key_loses_no_packet_even_when_one_end_missed_the_commit];

/// What promises a time, which takes a processor that nobody else has: on both grounds, and alone.
const ALONE: &[(&str, Test)] =
    tests![change::a_fourth_site_reaches_all_two_seconds_after_it_joined_and_nobody_two_seconds_after_its_removal,];

/// What passes packets through a device, sets it or repairs it: on both grounds, since each has a
/// device of its own.
const ON_BOTH: &[(&str, Test)] = tests![
    laboratory::a_stream_notices_a_cable_that_is_pulled_for_a_moment,
    guide::every_tunnel_address_and_every_lan_host_pings_every_other,
    guide::a_lan_host_reaches_another_by_the_direct_path_under_its_own_address,
    guide::each_peer_may_use_its_tunnel_address_and_its_lan_and_every_link_is_up_from_both_ends,
    change::a_hundred_changes_of_one_site_lose_no_packet_of_another,
    outage::h1_a_killed_agent_leaves_its_tunnels_up,
    outage::an_agent_that_is_stopped_and_started_again_loses_no_packet,
    repair::h4_a_deleted_interface_and_what_a_stranger_set_are_repaired_within_ten_seconds,
    repair::h8_down_leaves_the_gateway_as_it_was_and_nothing_of_others_was_touched,
    psk::without_a_key_no_packet_passes_unless_the_mesh_says_so_and_with_one_the_tunnel_stays,
    psk::h2_a_round_that_is_cut_short_at_any_step_by_the_death_of_all_ends_with_a_new_key_and_loses_no_packet,
    rotation::a_node_takes_up_a_new_key_and_no_packet_is_lost_in_either_direction,
    rotation::a_busy_node_takes_up_a_new_key_and_no_packet_is_lost_or_out_of_order,
    rotation::h2_a_node_that_dies_before_and_after_it_took_up_a_key_loses_no_packet,
    rotation::without_the_coordinator_all_follow_to_a_new_key_and_an_agent_that_starts_meanwhile_does_too,
    unmanaged::a_site_with_a_file_reaches_all_and_gets_through_with_the_old_file_until_it_has_the_new_one,
];

/// What is decided above the device and shown by packets or by the device's settings: on the
/// kernel's alone, which most gateways have.
const ON_KERNEL: &[(&str, Test)] = tests![
    outage::without_the_coordinator_no_packet_is_lost_and_its_return_costs_no_snapshot,
    psk::e11_each_pair_has_a_key_of_its_own_which_no_coordinator_ever_had,
    see::verify_tells_whether_every_tunnel_and_every_lan_answers,
    see::doctor_names_what_is_in_the_way_and_the_remedy_helps,
    trust::e8_packets_of_a_compromised_gateway_with_anothers_source_address_are_dropped,
    trust::e1_a_prefix_that_would_cut_a_gateway_off_is_refused_and_the_rest_carried_out,
    trust::e2_a_key_swapped_in_the_database_reaches_no_kernel_and_is_reported,
    trust::e3_e12_whoever_has_the_coordinator_brings_nothing_into_a_kernel_that_no_operator_signed,
    // These treat the machine as no host of anybody's: they unload modules, or need a root that is
    // real.
    kernel::h6_a_taken_port_is_named_and_the_tunnels_come_up_when_it_is_free,
    kernel::h6_an_agent_that_may_not_make_interfaces_says_what_it_needs_and_goes_on_trying,
    kernel::an_ordinary_user_with_cap_net_admin_alone_weaves_repairs_and_takes_down,
    kernel::h6_a_module_that_comes_later_is_used_from_the_next_interface_on_and_harms_no_tunnel,
];

/// What says nothing of a device: the agent's and the coordinator's own conduct, the page, the
/// command line. It is quickest here.
const ON_HOST: &[(&str, Test)] = tests![
    // The userspace device by itself.
    device::flows_come_whole_and_in_order_with_and_without_each_offload,
    device::a_flow_beside_one_that_takes_all_there_is_loses_nothing_and_keeps_its_order,
    device::a_route_with_a_smaller_mtu_holds_for_flows_of_which_linux_hands_over_64_kib,
    device::a_peer_is_answered_from_the_address_that_it_asked,
    // These wait for minutes, so they begin early.
    restored::h8_a_gateway_that_is_set_back_to_an_earlier_disk_says_so_at_both_ends_and_one_command_mends_it,
    hostile::e14_e15_e16_e17_whatever_a_coordinator_with_the_meshs_authority_says_its_gateways_keep_their_networks_and_come_back,
    psk::whoever_asks_for_new_keys_gets_one_with_each_peer_and_a_peer_that_is_away_is_named,
    laboratory::sites_reach_each_others_gateways_over_the_underlay_and_not_each_others_lans,
    change::a_removed_gateway_that_hears_of_it_gives_up_its_peers_when_that_is_confirmed,
    change::an_agent_that_waits_for_its_enrolment_starts_at_once_and_joining_again_changes_nothing,
    outage::no_restart_of_the_coordinator_and_nothing_it_says_again_changes_anything_on_a_gateway,
    psk::after_a_cut_in_which_both_peers_were_replaced_keys_and_tunnels_are_there_within_seconds,
    outage::join_and_changes_get_through_where_large_packets_are_lost_and_no_router_says_so,
    outage::agents_move_between_coordinators_without_a_snapshot_or_a_lost_packet,
    outage::a_device_of_before_an_upgrade_is_told_and_when_it_is_ended_the_new_one_comes,
    outage::h7_systemd_is_told_that_an_agent_is_ready_and_that_its_loop_goes_on,
    outage::h7_programs_without_descriptors_or_time_go_on_and_no_packet_is_lost,
    lock::e4_with_the_lock_a_gateway_that_is_revoked_stays_a_peer_until_an_operator_signs,
    restored::e19_a_node_that_was_revoked_after_the_backup_stays_out_when_it_is_restored,
    restored::e20_a_gateway_that_joined_after_the_backup_is_taken_in_again_without_a_visit,
    lock::e4_a_gateway_that_was_away_while_all_others_were_replaced_follows_when_an_operator_signs_once_and_holds_until_then,
    trust::e10_gateways_that_name_their_endpoints_come_up_at_once_and_one_that_names_anothers_sends_nobody_there,
    terminal::d11_nothing_that_a_coordinator_says_is_obeyed_by_a_terminal_or_forges_a_line_of_the_log,
    trust::e12_without_a_lock_each_gateway_tells_what_a_thief_of_the_coordinator_changed_and_changed_back,
    see::g8_a_link_that_is_cut_is_down_within_five_seconds_and_one_that_is_cut_one_way_asymmetric,
    see::doctor_tells_before_a_join_what_the_machine_lacks_and_who_has_the_agents_names,
    see::the_page_shows_three_sites_whose_links_are_up_and_within_seconds_one_that_is_cut,
    see::a_prometheus_scrapes_agent_and_coordinator_and_promtool_finds_no_fault,
    repair::h3_a_state_directory_that_is_full_read_only_damaged_or_gone_costs_no_tunnel_and_no_key,
    rotation::peers_whose_firewalls_are_long_in_listing_their_rules_follow_to_a_new_key_all_the_same,
    rotation::a_peer_that_was_away_learns_the_key_when_it_is_back,
    rotation::a_rotation_that_somebody_is_not_ready_for_is_given_up_with_the_reason_and_no_packet_is_lost,
    rotation::h2_another_identity_is_taken_up_whoever_dies_at_whatever_step_and_no_packet_is_lost,
    rotation::handshakes_that_are_lost_while_a_key_is_taken_up_cost_little_and_the_tunnels_come_up,
    underlay::e13_no_change_at_the_centre_nor_its_undoing_makes_a_gateway_deaf,
    input::join_strings_that_are_spent_expired_revoked_foreign_or_mistyped_get_a_clear_error_and_lose_nothing,
    input::c5_c6_whoever_guesses_tokens_is_slowed_down_and_nobody_else_is,
    input::t5_a_join_string_is_compared_with_what_the_machine_is,
    input::a_bad_request_gets_a_problem_that_says_why_and_changes_nothing,
];

/// Tests that make labs and look at them from outside.
const OUTSIDE: &[(&str, Test)] = tests![
    laboratory::a_killed_lab_leaves_nothing_behind,
    laboratory::the_demo_serves_whoever_started_it_and_ends_with_ctrl_c,
];

/// Stands before the name of a test on the kernel ground.
const KERNEL: &str = "kernel::";
/// The agent's own tests of what it does to a kernel, as one test, and the program that has them.
const AGENTS_OWN: &str = "kernel::the_agents_own";
const AGENT_TESTS: &str = "wattle-agent";
/// How many tests run side by side. Most wait for most of their time.
const SIDE_BY_SIDE: usize = 3;
/// How long a test on the kernel ground may take, whatever it waits for.
const LIMIT: f64 = 400.0;

fn main() -> ExitCode {
    enter::main(inside, || {
        if machine::is_inside() {
            here()
        } else {
            outside()
        }
    })
}

/// In a machine of the kernel ground: runs one test.
fn here() -> ExitCode {
    let tests = [LONG, ON_BOTH, ON_KERNEL, ALONE].into_iter().flatten();
    let trials = tests.map(|(name, _)| {
        Trial::test(*name, move || {
            in_a_lab(name, &env::var_os("PATH").unwrap_or_default()).map_err(failed)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn outside() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    let mut on_kernel: Vec<String> = [LONG, ON_BOTH, ON_KERNEL, ALONE]
        .into_iter()
        .flatten()
        .map(|(name, _)| format!("{KERNEL}{name}"))
        .chain([AGENTS_OWN.to_owned()])
        .collect();
    if let Some(why) = machine::missing() {
        say(&format!("kernel ground: missing: {why}"));
        if env::var_os("CI").is_some() {
            return ExitCode::FAILURE;
        }
        on_kernel.clear();
    }
    let prepared = if arguments.list {
        Ok(None)
    } else {
        prepare().map(Some)
    };
    let grounds = match prepared {
        Ok(grounds) => Arc::new(grounds),
        Err(error) => {
            say(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };

    let on_grounds = |name: String, test: fn(&Grounds, &str) -> Result<()>| {
        let grounds = Arc::clone(&grounds);
        trial(name, move |name| {
            test(
                grounds.as_ref().as_ref().context("nothing was prepared")?,
                name,
            )
        })
    };
    let on_kernel = on_kernel
        .into_iter()
        .map(|name| on_grounds(name, in_a_machine));
    let beside = |(name, _): &(&str, Test)| on_grounds((*name).to_owned(), in_a_lab_beside);
    // The kernel may still be being built meanwhile.
    let mut trials: Vec<_> = LONG.iter().chain(ON_HOST).map(beside).collect();
    let on_host = ON_BOTH.iter().chain(ALONE).map(beside);
    let outside = OUTSIDE
        .iter()
        .map(|(name, test)| trial((*name).to_owned(), |name| test(&fresh(name)?)));
    // What is heavy and what waits mixed: a kernel test, then one of this machine.
    let mut on_host = on_host.chain(outside);
    for trial in on_kernel {
        trials.push(trial);
        trials.extend(on_host.next());
    }
    trials.extend(on_host);
    let conclusion = libtest_mimic::run(&arguments, trials);
    say(&times::slowest());
    conclusion.exit_code()
}

/// What the tests of both grounds stand on.
struct Grounds {
    /// Before all others in the path: see [`make_cluster`].
    postgres: TempDir,
    /// The program with the agent's own tests.
    agent_tests: Option<PathBuf>,
    /// Of the kernel ground; made for the first test there, which waits where the kernel is still
    /// being built.
    machines: OnceLock<Result<Machines, String>>,
}

impl Grounds {
    fn machines(&self) -> Result<&Machines> {
        let made = self
            .machines
            .get_or_init(|| self.make_machines().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow!(error.clone()))
    }

    fn make_machines(&self) -> Result<Machines> {
        let agents = self.agent_tests.clone();
        let agents = agents.context("no agent's tests: use `cargo test`")?;
        let programs = [("end_to_end", env::current_exe()?), (AGENT_TESTS, agents)];
        let machines = Machines::prepare(programs)?;
        say(&format!(
            "kernel ground: {}; logs: {}",
            machines.kernel(),
            machines.folder().display()
        ));
        Ok(machines)
    }
}

/// So many warnings of each program are shown when a test fails.
const WARNINGS: usize = 20;

/// Builds the programs.
fn prepare() -> Result<Grounds> {
    let mut tests = binaries::build()?;
    say(&format!("ground: {}", Ground::find()?));
    // Where the account of Postgres can reach it.
    let postgres = tempfile::Builder::new()
        .prefix("wattle-lab-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in("/tmp")?;
    make_cluster(postgres.path())?;
    Ok(Grounds {
        postgres,
        agent_tests: tests.remove(AGENT_TESTS),
        machines: OnceLock::new(),
    })
}

/// Held by tests: by one of [`ALONE`] as its only one, by those of [`LONG`], which do nothing most
/// of the time, not at all.
static COMPANY: RwLock<()> = RwLock::new(());

/// A test that runs beside others or alone.
fn trial(name: String, test: impl FnOnce(&str) -> Result<()> + Send + 'static) -> Trial {
    let is_of = |list: &[(&str, Test)]| {
        list.iter()
            .any(|(listed, _)| name.strip_prefix(KERNEL).unwrap_or(&name) == *listed)
    };
    let (alone, long) = (is_of(ALONE), is_of(LONG));
    Trial::test(name.clone(), move || {
        let _alone = alone.then(|| COMPANY.write().unwrap_or_else(PoisonError::into_inner));
        let _beside_others =
            (!alone && !long).then(|| COMPANY.read().unwrap_or_else(PoisonError::into_inner));
        times::timed(&name, || test(&name)).map_err(failed)
    })
}

/// Runs a test of the kernel ground in a machine of its own.
fn in_a_machine(grounds: &Grounds, name: &str) -> Result<()> {
    let machines = grounds.machines()?;
    let test = name
        .strip_prefix(KERNEL)
        .context("not a test of the kernel ground")?;
    let (program, arguments, passed) = if name == AGENTS_OWN {
        (
            AGENT_TESTS,
            "kernel::".to_owned(),
            "passed; 0 failed; 0 ignored",
        )
    } else {
        (
            "end_to_end",
            format!("--exact {test}"),
            "1 passed; 0 failed; 0 ignored",
        )
    };
    let job = format!("exec test-{program} {arguments} --test-threads=1 --color=never");
    let ended = machines.run(test, &job, patience(LIMIT))?;
    // A program that ran nothing ends well, too.
    let ran = ended.output.lines().any(|line| {
        line.strip_prefix("test result: ok. ")
            .is_some_and(|result| result.contains(passed) && !result.starts_with("0 passed"))
    });
    ensure!(
        ended.success && ran,
        "{}\nlogs: {}",
        ended.output.trim(),
        machines.folder().display()
    );
    Ok(())
}

/// Runs a test on this machine, beside those of other grounds.
fn in_a_lab_beside(grounds: &Grounds, name: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let path = iter::once(grounds.postgres.path().to_owned())
        .chain(env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    in_a_lab(name, &env::join_paths(path)?)
}

/// Runs the test `name` in new namespaces, where programs are found by `path`.
fn in_a_lab(name: &str, path: &OsStr) -> Result<()> {
    let folder = fresh(name)?;
    let said = folder.join("test.log");
    let log = File::create(&said)?;
    let status = enter::command(name)?
        .env("PATH", path)
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("starting setpriv")?;
    if status.success() {
        return Ok(());
    }
    let log = fs::read_to_string(&said)?;
    let why = enter::explain(&log).unwrap_or("it failed");
    bail!(
        "{why} ({status}): {}\n{}logs: {}",
        log.trim(),
        warnings(&folder)?,
        folder.display()
    )
}

/// The last warnings of each program: who reads of a failure elsewhere has no logs.
fn warnings(folder: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let log = fs::read(&path)?;
        let log = String::from_utf8_lossy(&log);
        let warned: Vec<_> = log.lines().filter(|line| is_warning(line)).collect();
        let last = warned.len().saturating_sub(WARNINGS);
        let name = path.file_name().unwrap_or_default().display();
        all.extend(
            warned[last..]
                .iter()
                .map(|line| format!("{name}: {line}\n")),
        );
    }
    Ok(all)
}

fn is_warning(line: &str) -> bool {
    ["WARN", "ERROR", "panicked at"]
        .iter()
        .any(|word| line.contains(word))
}

fn inside(job: &str) -> Result<()> {
    if job == ground::PROBE {
        return ground::probe();
    }
    if job == laboratory::HOLD {
        return laboratory::hold();
    }
    let mut tests = [LONG, ALONE, ON_BOTH, ON_KERNEL, ON_HOST]
        .into_iter()
        .flatten();
    let (name, test) = tests
        .find(|(name, _)| *name == job)
        .with_context(|| format!("no test is called {job}"))?;
    test(&binaries::scratch(name)?)
}

fn fresh(name: &str) -> Result<PathBuf> {
    let folder = binaries::scratch(name)?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

fn say(line: &str) {
    // Whoever closed the output does not want to know.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The peers that the device of `site` has to have, in a mesh of `sites`: key with allowed
/// prefixes, both in order.
fn expected_peers(
    nodes: &[Node],
    site: LabSite,
    sites: &[LabSite],
) -> Result<Vec<(String, Vec<String>)>> {
    let others = sites.iter().filter(|other| **other != site);
    let mut peers = others
        .map(|other| {
            let node = nodes
                .iter()
                .find(|node| node.site_name.to_string() == other.name)
                .with_context(|| format!("no node at {}", other.name))?;
            Ok((
                node.wireguard_key.to_string(),
                vec![other.lan.to_string(), format!("{}/32", node.tunnel_address)],
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    for (_, prefixes) in &mut peers {
        prefixes.sort();
    }
    peers.sort();
    Ok(peers)
}
