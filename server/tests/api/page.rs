//! The web page, as people meet it: in a browser.

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use wattle_mesh::agent::admission::Operator;
use wattle_wire::{ids::NodeId, join::JoinString};

use crate::{
    agents::{Node, NodeKeys, new_node},
    browser::Browser,
    harness::{Coordinator, empty_database, send},
    nodes::signed,
};

pub(crate) async fn signed_in(coordinator: &Coordinator) -> Browser {
    let browser = Browser::open(&coordinator.url("/")).await;
    browser.sign_in(&coordinator.token).await;
    browser
}

fn report_of(peers: &[(NodeId, Value)]) -> Value {
    let link = |(peer, age): &(NodeId, Value)| json!({"peer": peer, "handshake_age_s": age, "received_bytes": 123_456_789, "sent_bytes": 4_567, "endpoint": "198.51.100.20:51820"});
    let links: Vec<_> = peers.iter().map(link).collect();
    json!({"applied": "1.6", "device": "kernel", "links": links})
}

async fn report(coordinator: &Coordinator, from: &Node, peers: &[(NodeId, Value)]) {
    from.report(coordinator, report_of(peers)).await.expect(204);
}

#[tokio::test]
async fn d4_the_page_may_load_what_the_coordinator_serves_and_nothing_else() {
    let coordinator = Coordinator::start().await;
    for path in ["/", "/ui/main.js", "/ui/style.css", "/ui/nothing.js"] {
        let answer = send(
            coordinator
                .client
                .request(Method::GET, coordinator.url(path)),
        )
        .await;
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        assert!(
            header("content-security-policy").starts_with("default-src 'self'; "),
            "{path}"
        );
        assert!(
            header("content-security-policy").contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(
            !header("content-security-policy").contains("unsafe"),
            "{path}"
        );
        assert_eq!(
            (header("x-content-type-options"), header("x-frame-options")),
            ("nosniff".to_owned(), "DENY".to_owned())
        );
    }
    let first = send(coordinator.client.get(coordinator.url("/")))
        .await
        .expect(200);
    let etag = first.headers["etag"].to_str().unwrap();
    send(
        coordinator
            .client
            .get(coordinator.url("/"))
            .header("if-none-match", etag),
    )
    .await
    .expect(304);
    assert!(
        !first
            .text
            .contains(&coordinator.server.app.settings.mesh.to_string()),
        "nothing of the mesh is in the page"
    );
}

#[tokio::test]
async fn an_operator_adds_sites_and_watches_their_link_come_up_and_go_down() {
    let coordinator = Coordinator::start().await;
    let browser = Browser::open(&coordinator.url("/")).await;
    browser.keep("sign-in").await;
    browser.sign_in("wattle-nonsense").await;
    browser.see("#token-error", "not a valid api token").await;
    browser.sign_in(&coordinator.token).await;
    browser.see("#sentence", "0 sites, 0 links").await;

    browser.click("nav a[href='#/add']").await;
    browser.fill("#field-name", "dublin").await;
    browser
        .fill("#field-subnets", "10.10.0.0/24\n10.99.0.0/24")
        .await;
    browser.click("form.site button.primary").await;
    browser.see("#error-subnets", "Line 2: ").await;
    assert_eq!(
        browser
            .run("return document.activeElement.id", json!([]))
            .await,
        "field-subnets"
    );
    browser.keep("add-site-refused").await;
    browser.fill("#field-subnets", "10.10.0.0/24").await;
    browser.fill("#field-labels", "region=emea").await;
    browser.click("form.site button.primary").await;
    browser.see("main h1", "dublin is added").await;
    browser.keep("site-added").await;
    let command = browser.text(".copyable code").await;
    let join: JoinString = command
        .strip_prefix("echo ")
        .and_then(|rest| rest.strip_suffix(" | wattle-agent join -"))
        .unwrap()
        .parse()
        .unwrap();
    let dublin = NodeKeys::new().enrol(&coordinator, &join).await;
    assert_eq!(
        coordinator.get("/sites/dublin").await.json()["labels"],
        json!({"region": "emea"})
    );

    browser.click("a.mark").await;
    browser.see("#sentence", "1 site, 0 links").await;
    let frankfurt = new_node(
        &coordinator,
        json!({"name": "frankfurt", "subnets": ["10.20.0.0/24"]}),
    )
    .await;
    browser
        .see("#sentence", "2 sites, 1 link, 1 never up")
        .await;
    for (from, to) in [(&dublin, &frankfurt), (&frankfurt, &dublin)] {
        report(&coordinator, from, &[(to.id(), json!(3))]).await;
    }
    browser.see("#sentence", "2 sites, 1 link, all up").await;
    for (from, to) in [(&dublin, &frankfurt), (&frankfurt, &dublin)] {
        report(&coordinator, from, &[(to.id(), json!(200))]).await;
    }
    browser
        .see("#sentence", "2 sites, 1 link, 1 down since ")
        .await;
    browser.see(".attention", "dublin – frankfurt").await;

    // The matrix, by the keyboard alone.
    browser
        .run("document.getElementById('matrix').focus()", json!([]))
        .await;
    browser.see("#cell", "dublin – frankfurt: down since").await;
    browser
        .find("#matrix")
        .await
        .send_keys("\u{e007}")
        .await
        .unwrap();
    browser.see("main h1", "dublin – frankfurt down").await;
    browser
        .see("table[aria-label='Both ends']", "117.7 MiB")
        .await;
    browser
        .see(
            "table[aria-label='Both ends']",
            "198.51.100.20:51820 learned",
        )
        .await;
    browser.see("table[aria-label=History]", "down").await;
    browser.keep("link").await;
    browser.click("main h1 a").await;
    browser.see("main h1", "dublin").await;
    browser.see("table[aria-label=Links]", "117.7 MiB").await;
    browser.click("#new-token").await;
    browser.see(".copyable code", "echo wattle1.").await;
    browser.keep("site").await;
    browser.click("#remove").await;
    browser.see("dialog", "Remove dublin?").await;
    browser.keep("remove").await;
    browser.click("dialog button.danger").await;
    browser.see("main h1", "1 site").await;

    assert_eq!(browser.complaints().await, Vec::<String>::new());
    assert_eq!(
        browser
            .run("return [localStorage.length, document.cookie]", json!([]))
            .await,
        json!([0, ""]),
        "the token is in the tab only"
    );
    browser.click("#sign-out").await;
    browser.find("#token").await;
    assert_eq!(
        browser.run("return sessionStorage.length", json!([])).await,
        0
    );
}

#[tokio::test]
async fn an_operator_makes_api_tokens_as_far_as_his_own_goes_and_everybody_reads_of_it() {
    let coordinator = Coordinator::start().await;
    let created = coordinator
        .post(
            "/api-tokens",
            json!({"name": "carol", "role": "operator", "expires_in_s": 172_800}),
        )
        .await;
    let browser = Browser::open(&coordinator.url("/")).await;
    browser
        .sign_in(created.expect(201).json()["token"].as_str().unwrap())
        .await;
    browser.see("#sentence", "0 sites").await;
    browser.click("nav a[href='#/tokens']").await;
    browser
        .see("table[aria-label='Api tokens']", "carol (this tab's)")
        .await;
    let choices = "return ['role', 'lifetime'].map((name) => \
        [...document.getElementById(`token-${name}`).options].map((option) => option.text))";
    assert_eq!(
        browser.run(choices, json!([])).await,
        json!([["viewer", "operator"], ["a day"]])
    );
    let buttons = "return document.querySelectorAll('main td button').length";
    assert_eq!(
        browser.run(buttons, json!([])).await,
        0,
        "neither one's own nor an owner's"
    );

    browser.click("#make-token").await;
    browser
        .see("#token-error", "say what the token is for")
        .await;
    browser.fill("#token-name", HOSTILE).await;
    browser.click("#make-token").await;
    browser.see(".copyable code", "wattle").await;
    let secret = browser.text(".copyable code").await;
    let with = async |token: &str| {
        send(
            coordinator
                .client
                .get(coordinator.url("/sites"))
                .bearer_auth(token),
        )
        .await
        .status
    };
    assert_eq!(with(&secret).await, 200);
    browser.see("table[aria-label='Api tokens']", HOSTILE).await;
    browser.keep("tokens").await;
    browser.go("#/events").await;
    browser
        .see("table[aria-label=Events]", "api-token.create")
        .await;
    browser.go("#/tokens").await;
    browser.click("main td button").await;
    browser.click("dialog button.danger").await;
    browser
        .until("it is revoked", async || with(&secret).await == 401)
        .await;
    assert!(
        !browser.text("main").await.contains(&secret),
        "it is shown once"
    );

    // Events come by themselves.
    browser.go("#/events").await;
    browser
        .see("table[aria-label=Events]", "api-token.revoke")
        .await;
    coordinator
        .post("/sites", json!({"name": "oslo"}))
        .await
        .expect(201);
    browser
        .see("table[aria-label=Events] tbody tr", "site.create")
        .await;
    browser
        .see("table[aria-label=Events] tbody tr", "oslo")
        .await;
    browser.keep("events").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_viewer_sees_how_links_are_and_no_button_that_he_may_not_press() {
    let coordinator = Coordinator::start().await;
    let nodes = mesh_of(&coordinator, 3).await;
    let probe = json!({"state": "lossy", "loss_percent": 25, "round_trip_us": 12_345});
    for (from, to) in [(0, 2), (2, 0)] {
        let link = json!({"peer": nodes[to].id(), "handshake_age_s": 3, "received_bytes": 1, "sent_bytes": 1, "endpoint": null, "probe": probe});
        nodes[from]
            .report(
                &coordinator,
                json!({"applied": "1.6", "device": "kernel", "links": [link]}),
            )
            .await
            .expect(204);
    }
    let visible = "return [...document.querySelectorAll('main button, main form, nav \
        a')].filter((each) => each.offsetParent).map((each) => each.id || each.textContent)";
    let seen = async |token: &str| {
        let browser = Browser::open(&coordinator.url("/")).await;
        browser.sign_in(token).await;
        browser.see("#sentence", "3 sites, 3 links").await;
        browser
            .run("document.getElementById('matrix').focus()", json!([]))
            .await;
        browser
            .find("#matrix")
            .await
            .send_keys("\u{e014}")
            .await
            .unwrap();
        browser
            .see("#cell", "site-000 – site-002: degraded (lossy)")
            .await;
        browser.see("#cell", "; 12.3 ms, 25 % lost").await;
        browser.go("#/sites/site-000").await;
        browser.see("table[aria-label=Links]", "12.3 ms").await;
        browser.see("table[aria-label=Links]", "25 %").await;
        browser.see("table[aria-label=Links]", "lossy").await;
        browser.keep("viewer").await;
        let seen = browser.run(visible, json!([])).await;
        for (hash, heading) in [("#/add", "Add a site"), ("#/tokens", "Api tokens")] {
            browser.go(hash).await;
            browser
                .see(
                    "main h1",
                    if token == coordinator.token {
                        heading
                    } else {
                        "3 sites"
                    },
                )
                .await;
        }
        seen.as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let created = coordinator
        .post("/api-tokens", json!({"name": "looks", "role": "viewer"}))
        .await
        .expect(201)
        .json();
    let viewer = seen(created["token"].as_str().unwrap()).await;
    assert_eq!(viewer, ["Overview", "Sites", "Events"], "{viewer:?}");
    let owner = seen(&coordinator.token).await;
    assert!(
        ["change", "remove", "new-token"]
            .iter()
            .all(|id| owner.contains(&(*id).to_owned())),
        "{owner:?}"
    );
}

/// A mesh of so many sites whose links are up, but that between the first two, which is down, and
/// the third's with the last, of which one end says nothing.
async fn mesh_of(coordinator: &Coordinator, size: usize) -> Vec<Node> {
    let sites = stream::iter(0..size).map(|number| {
        let region = if number % 2 == 0 { "emea" } else { "apac" };
        let subnet = format!("10.{}.{}.0/24", 100 + number / 250, number % 250);
        new_node(coordinator, json!({"name": format!("site-{number:03}"), "subnets": [subnet], "labels": {"region": region}}))
    });
    let nodes: Vec<Node> = sites.buffered(8).collect().await;
    for (number, node) in nodes.iter().enumerate() {
        let age = |peer: usize| match (number.min(peer), number.max(peer)) {
            (0, 1) => json!(900),
            (2, last) if last == size - 1 && number == 2 => Value::Null,
            _ => json!(7),
        };
        let peers: Vec<_> = (0..size)
            .filter(|peer| *peer != number)
            .map(|peer| (nodes[peer].id(), age(peer)))
            .collect();
        let report = report_of(&peers);
        node.report_only(coordinator, report).await.expect(204);
    }
    coordinator.write_reports().await;
    nodes
}

/// How many colours the matrix shows, and whether anything is wider than the screen.
const LOOKS: &str = "
    const canvas = document.getElementById('matrix');
    const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, \
    canvas.height).data.buffer);
    return [new Set(pixels).size, document.documentElement.scrollWidth > innerWidth]";

#[tokio::test]
async fn three_hundred_sites_can_be_seen_searched_and_walked_through() {
    let coordinator = Coordinator::start().await;
    mesh_of(&coordinator, 300).await;
    let browser = signed_in(&coordinator).await;
    browser
        .see("#sentence", "300 sites, 44,850 links, 1 down since")
        .await;
    browser.see("#sentence", "1 degraded since").await;
    let looks = browser.run(LOOKS, json!([])).await;
    assert!(looks[0].as_u64() >= Some(4) && looks[1] == false, "{looks}");
    browser.keep("300-sites").await;

    // The focus brings the first link; N goes on to the next that is not up, and round.
    browser.find("#matrix").await.send_keys("n").await.unwrap();
    browser
        .see("#cell", "site-002 – site-299: degraded (asymmetric) since")
        .await;
    browser.find("#matrix").await.send_keys("n").await.unwrap();
    browser
        .see("#cell", "site-000 – site-001: down since")
        .await;
    browser
        .find("#matrix")
        .await
        .send_keys("++++++")
        .await
        .unwrap();
    browser.keep("300-sites-near").await;
    let matches = "return document.getElementById('matrix').getAttribute('aria-label')";
    browser.fill("#filter", "site-01").await;
    assert_eq!(
        browser.run(matches, json!([])).await,
        "Links between 10 gateways"
    );
    browser.fill("#filter", "10.101.4").await;
    assert_eq!(
        browser.run(matches, json!([])).await,
        "Links between 11 gateways"
    );
    browser.fill("#filter", " ").await;
    browser.click("#problems").await;
    assert_eq!(
        browser.run(matches, json!([])).await,
        "Links between 4 gateways"
    );
    browser.go("#/sites").await;
    browser.see("main h1", "300 sites").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_page_is_for_light_and_dark_wide_and_narrow_eyes_and_ears() {
    let coordinator = Coordinator::start().await;
    mesh_of(&coordinator, 12).await;
    coordinator
        .post(
            "/sites",
            json!({"name": "sao-paulo", "description": "opens in March"}),
        )
        .await
        .expect(201);
    let browser = signed_in(&coordinator).await;
    browser
        .see("#sentence", "13 sites, 66 links, 1 down since")
        .await;
    for (scheme, width) in [
        ("light", 1280),
        ("dark", 1280),
        ("light", 390),
        ("dark", 390),
    ] {
        browser.become_(scheme, width).await;
        for (name, hash, place, text) in [
            ("overview", "#/", ".ring svg", ""),
            ("sites", "#/sites", "main h1", "13 sites"),
            ("site", "#/sites/site-000", "table[aria-label=Links]", "MiB"),
            (
                "link",
                "#/links/site-000/site-001",
                "table[aria-label=History]",
                "down",
            ),
            (
                "tokens",
                "#/tokens",
                "table[aria-label='Api tokens']",
                "owner",
            ),
            (
                "events",
                "#/events",
                "table[aria-label=Events]",
                "site.create",
            ),
            ("add", "#/add", "main h1", "Add"),
        ] {
            browser.go(hash).await;
            browser.find(place).await;
            browser.see(place, text).await;
            assert_eq!(
                browser
                    .run(
                        "return document.documentElement.scrollWidth > innerWidth",
                        json!([])
                    )
                    .await,
                false,
                "{name} at {width}"
            );
            assert_eq!(browser.run(UNNAMED, json!([])).await, json!([]), "{name}");
            assert_eq!(
                browser.run(FAINT, json!([])).await,
                json!([]),
                "{name} in {scheme}"
            );
            browser.keep(&format!("{name}-{scheme}-{width}")).await;
        }
    }
}

/// What a screen reader could not name, and headings and regions that are missing.
const UNNAMED: &str = "
    const name = (element) => element.getAttribute('aria-label') || element.labels?.[0]?.innerText \
    || element.innerText || element.textContent;
    const all = [...document.querySelectorAll('a[href], button, input, select, textarea, canvas, \
    svg:not([aria-hidden])')];
    const unnamed = all.filter((element) => element.checkVisibility() && \
    !name(element)?.trim()).map((element) => element.outerHTML);
    const missing = ['main h1', 'header nav[aria-label]', 'html[lang]'].filter((selector) => \
    !document.querySelector(selector));
    const untold = [...document.querySelectorAll('main section')].filter((section) => \
    !document.getElementById(section.getAttribute('aria-labelledby')));
    return [...unnamed, ...missing, ...untold.map((section) => section.outerHTML)]";

/// Texts whose contrast is below 4.5, the least that WCAG 2.2 asks for (1.4.3).
const FAINT: &str = "
    const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const over = (colours) => {
        paint.clearRect(0, 0, 1, 1);
        for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / \
        12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((child) => child.nodeType === 3 && \
        child.data.trim());
        if (!own || !element.checkVisibility() || element.closest('.skip, .visually-hidden, \
        [disabled], svg')) continue;
        const layers = [];
        for (let at = element; at; at = at.parentElement) \
        layers.unshift(getComputedStyle(at).backgroundColor);
        const [under, text] = [light(over(layers)), light(over([...layers, \
        getComputedStyle(element).color]))];
        const contrast = (Math.max(under, text) + 0.05) / (Math.min(under, text) + 0.05);
        if (contrast < 4.5) faint.push(`${contrast.toFixed(1)}: ${element.className} \
        ${element.innerText}`);
    }
    return faint";

#[tokio::test]
async fn a_site_says_who_is_admitted_where_an_operator_admits_anybody() {
    let coordinator = Coordinator::start().await;
    for name in ["dublin", "frankfurt"] {
        new_node(&coordinator, json!({ "name": name, "subnets": [] })).await;
    }
    let browser = signed_in(&coordinator).await;
    browser.go("#/sites/dublin").await;
    browser.see("table[aria-label=Gateways]", "active").await;
    assert!(
        !browser
            .text("table[aria-label=Gateways]")
            .await
            .contains("admitted"),
        "who does not use the lock does not read of it"
    );
    let admissions = signed(&coordinator, &Operator::new(&[7; 32]).unwrap()).await;
    // The page follows without being loaded anew.
    coordinator
        .post("/admissions", json!({ "admissions": [admissions[0]] }))
        .await
        .expect(204);
    browser
        .see("table[aria-label=Gateways]", "active, admitted")
        .await;
    browser.go("#/sites/frankfurt").await;
    browser
        .see(
            "table[aria-label=Gateways]",
            "active, not admitted by an operator",
        )
        .await;
}

#[tokio::test]
async fn the_page_says_which_gateway_holds_peers_and_what_confirms_that_they_go() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin", "subnets": []})).await;
    let browser = signed_in(&coordinator).await;
    let report = |locked: bool| {
        let peer = |name: &str, because: &str| {
            let (node, identity) = (dublin.id(), dublin.machine.identity_key());
            json!({"node": node, "name": name, "identity": identity, "because": because})
        };
        let peers = [peer("cork", "removed"), peer("galway", "lost")];
        json!({
            "applied": "1.2", "device": "kernel", "links": [],
            "locked": locked, "held": {"total": 3, "peers": peers}
        })
    };
    dublin.report(&coordinator, report(false)).await.expect(204);
    let words = "dublin has 3 peers only until somebody confirms that they go: cork, galway and 1 \
        more. To confirm, run wattle-agent confirm on dublin";
    browser.see(".attention", words).await;
    browser.go("#/sites/dublin").await;
    for words in [
        "cork was removed",
        "galway is not known any more",
        "and 1 more",
        "To confirm, run wattle-agent confirm on dublin",
    ] {
        browser.see("table[aria-label=Gateways]", words).await;
    }
    // With the lock an operator can.
    dublin.report(&coordinator, report(true)).await.expect(204);
    let words = "To confirm for all gateways, run wattle-agent lock sign; for this one alone, run \
        wattle-agent confirm on dublin";
    browser.see("table[aria-label=Gateways]", words).await;
    browser.go("#/").await;
    browser.see(".attention", words).await;
}

#[tokio::test]
async fn the_page_lists_nodes_that_gateways_know_as_removed_and_revokes_one_again() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin", "subnets": []})).await;
    let cork = new_node(&coordinator, json!({"name": "cork", "subnets": []})).await;
    // An operator let it in, so the gateway with the lock waits for another signature.
    let operator = Operator::new(&[7; 32]).unwrap();
    let admissions = signed(&coordinator, &operator).await;
    coordinator
        .post("/admissions", json!({ "admissions": admissions }))
        .await
        .expect(204);
    let report = json!({
        "applied": "1.3", "device": "kernel", "links": [], "locked": true, "returned": [cork.id()]
    });
    dublin.report(&coordinator, report).await.expect(204);
    let browser = signed_in(&coordinator).await;
    let words = "cork is known as removed on dublin, as after a restored backup. Revoke it again";
    browser.see(".attention", words).await;
    browser.click(&format!("#again-{}", cork.id())).await;
    browser.click("dialog button.danger").await;
    let words = "These gateways require the lock and keep their tunnel with it until an operator \
        signs the removal: dublin. Run wattle-agent lock sign.";
    browser.see("dialog", words).await;
    coordinator.get("/nodes/cork").await.expect(404);
}

#[tokio::test]
async fn a_gateway_without_an_agent_gets_its_file_on_the_page_of_its_site_which_says_when_that_is_old()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    coordinator
        .post("/sites", json!({"name": "cork"}))
        .await
        .expect(201);
    let browser = signed_in(&coordinator).await;
    let shown = async |css: &str| {
        browser
            .run(
                "return document.querySelector(arguments[0]).checkVisibility()",
                json!([css]),
            )
            .await
    };
    browser.go("#/sites/dublin").await;
    browser.see("table[aria-label=Gateways]", "active").await;
    assert_eq!(shown("#new-file").await, false, "an agent needs no file");

    browser.go("#/sites/cork").await;
    browser.fill("#file-key", "no key").await;
    browser.click("#new-file").await;
    browser.see("#file-error", "base64").await;
    browser.fill("#file-key", "").await;
    browser.click("#new-file").await;
    browser
        .see(
            "section .copyable code",
            "[Interface]\nAddress = 10.99.0.2/32\nPrivateKey = ",
        )
        .await;
    browser
        .see("table[aria-label=Gateways]", "active, no agent")
        .await;
    browser.see("table[aria-label=Gateways]", "file of ").await;
    assert_eq!(
        (shown("#file-key").await, shown("#new-file").await),
        (json!(false), json!(true)),
        "it has its key"
    );
    browser.keep("wg-quick").await;
    let cork: NodeId =
        serde_json::from_value(coordinator.get("/nodes/cork").await.json()["id"].clone()).unwrap();
    report(&coordinator, &dublin, &[(cork, json!(3))]).await;
    browser.go("#/links/cork/dublin").await;
    browser
        .see(
            "table[aria-label='Both ends']",
            "no agent: as the other end says",
        )
        .await;

    coordinator
        .patch("/sites/dublin", json!({"subnets": ["10.11.0.0/24"]}))
        .await
        .expect(200);
    browser.go("#/").await;
    browser
        .see(
            ".attention",
            "the mesh is not what the file of cork says any more",
        )
        .await;
    browser.click(".attention a").await;
    browser
        .see("table[aria-label=Gateways]", "file out of date")
        .await;
    browser.keep("wg-quick-old").await;
    assert!(
        !browser.text("main").await.contains("PrivateKey"),
        "it is shown once"
    );
    for scheme in ["light", "dark"] {
        browser.become_(scheme, 390).await;
        assert_eq!(
            browser
                .run(
                    "return document.documentElement.scrollWidth > innerWidth",
                    json!([])
                )
                .await,
            false
        );
        assert_eq!(
            (
                browser.run(UNNAMED, json!([])).await,
                browser.run(FAINT, json!([])).await
            ),
            (json!([]), json!([])),
            "{scheme}"
        );
    }
    browser.click("#new-file").await;
    browser
        .see(
            "section .copyable code",
            "PrivateKey = INSERT-THE-PRIVATE-KEY-HERE",
        )
        .await;
    browser.see("table[aria-label=Gateways]", "file of ").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_new_gateway_is_told_how_it_gets_the_agent_where_packages_are_known() {
    let none = Coordinator::start().await;
    let created = none.post("/sites", json!({"name": "dublin"})).await;
    let created = created.expect(201).json();
    assert_eq!(created["join_token"]["install"], Value::Null);

    let arguments = &["--packages=https://packages.example/wattle/"];
    let coordinator = Coordinator::start_with(empty_database().await, arguments).await;
    coordinator.post("/sites", json!({"name": "cork"})).await;
    let token = coordinator.post("/sites/cork/join-tokens", json!({})).await;
    let install = &token.expect(201).json()["install"];
    let version = env!("CARGO_PKG_VERSION");
    for (kind, file) in [
        (
            "deb",
            format!("wattle-agent_{version}-1_$(dpkg --print-architecture).deb\""),
        ),
        ("rpm", format!("wattle-agent-{version}-1.$(uname -m).rpm\"")),
    ] {
        let command = install[kind].as_str().unwrap();
        let url = format!("\"https://packages.example/wattle/{file}");
        assert!(command.contains(&url), "{command}");
    }

    let browser = signed_in(&coordinator).await;
    browser.click("nav a[href='#/add']").await;
    browser.fill("#field-name", "dublin").await;
    browser.click("form.site button.primary").await;
    browser
        .see("main", "apt-get install -y /run/wattle-agent.deb")
        .await;
    browser.see("main", "| wattle-agent join -").await;
    browser.keep("site-added-with-packages").await;
    browser.click("main p.actions a.button").await;
    browser.see("main h1", "dublin").await;
    browser.click("#new-token").await;
    browser.see("main", "dnf install -y").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

/// What somebody might write where free text is taken.
const HOSTILE: &str =
    "<script>window.caught = 1</script><img src=x onerror='window.caught = 1'>{{7*7}}${7*7}";

#[tokio::test]
async fn d4_text_is_shown_as_it_was_written_and_never_run() {
    let coordinator = Coordinator::start().await;
    let labels = json!({"note": HOSTILE});
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "description": HOSTILE, "labels": labels}),
    )
    .await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let problem = |code: &str| {
        json!({"code": code, "subject": HOSTILE, "words": HOSTILE, "lan": "degraded",
        "remedy": "javascript:window.caught=1"})
    };
    let problems = ["route", "no such code"].map(problem);
    dublin
        .report(
            &coordinator,
            json!({"applied": "1.4", "device": "kernel", "links": [], "problems": problems}),
        )
        .await
        .expect(204);

    let browser = signed_in(&coordinator).await;
    browser.see("#sentence", "2 sites").await;
    for (hash, places) in [
        ("#/sites", vec!["table"]),
        ("#/sites/dublin", vec![".free", ".facts", "ul.problems"]),
        ("#/", vec![]),
    ] {
        browser.go(hash).await;
        for place in places {
            browser.see(place, HOSTILE).await;
        }
    }
    browser.go("#/sites/dublin").await;
    browser.click("#change").await;
    browser.find("#field-description").await;
    browser
        .run(
            "location.hash = `#/sites/${encodeURIComponent(arguments[0])}`",
            json!([HOSTILE]),
        )
        .await;
    browser.see("main h1", HOSTILE).await;
    let found = "return [window.caught ?? null, document.querySelectorAll('main script, main \
        img').length, document.scripts.length]";
    assert_eq!(browser.run(found, json!([])).await, json!([null, 0, 1]));
    assert_eq!(
        browser.complaints().await,
        Vec::<String>::new(),
        "the policy had nothing to forbid"
    );
}

#[tokio::test]
async fn a_gateway_is_renamed_on_the_page_of_its_site() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    new_node(&coordinator, json!({"name": "cork"})).await;
    let browser = signed_in(&coordinator).await;
    browser.go("#/sites/dublin").await;
    browser.click(&format!("#rename-{}", dublin.id())).await;
    for (name, phrase) in [("cork", "has this name"), ("Athena", "lower-case")] {
        browser.fill("#node-name", name).await;
        browser.click("#save-name").await;
        browser.see("#node-name-error", phrase).await;
    }
    for (name, shown) in [("athena", "athena"), ("", "dublin")] {
        browser.fill("#node-name", name).await;
        browser.click("#save-name").await;
        browser
            .see("table[aria-label=Gateways] tbody th", shown)
            .await;
        browser.click(&format!("#rename-{}", dublin.id())).await;
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}
