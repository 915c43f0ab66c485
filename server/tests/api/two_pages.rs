//! Two administrators at once, each in a browser: neither overwrites what the other did.

use reqwest::Method;
use serde_json::json;

use crate::{
    agents::new_node,
    browser::Browser,
    harness::{Coordinator, send},
};

async fn opened(coordinator: &Coordinator, token: &str) -> Browser {
    let browser = Browser::open(&coordinator.url("/")).await;
    browser.sign_in(token).await;
    browser.see("#sentence", "1 site").await;
    browser
}

async fn opens(browser: &Browser) {
    browser.go("#/").await;
    browser.go("#/sites/dublin").await;
    browser.see("main h1", "dublin").await;
    browser.click("#change").await;
    browser.find("#field-subnets").await;
}

const SAVE: &str = "form.site button.primary";

#[tokio::test]
async fn two_who_change_a_site_keep_both_changes_or_are_told_that_it_is_the_same_field() {
    let coordinator = Coordinator::start().await;
    let site = json!({"name": "dublin", "subnets": ["10.1.0.0/24"]});
    new_node(&coordinator, site).await;
    let carol = json!({"name": "carol", "role": "operator"});
    let carol = coordinator.post("/api-tokens", carol).await.expect(201);
    let carol = carol.json()["token"].as_str().unwrap().to_owned();
    let (first, second) = tokio::join!(
        opened(&coordinator, &carol),
        opened(&coordinator, &coordinator.token)
    );
    let field = async |name: &str| coordinator.get("/sites/dublin").await.json()[name].clone();

    // Different fields: both stay, and the second is told.
    opens(&first).await;
    opens(&second).await;
    first
        .fill("#field-subnets", "10.1.0.0/24\n10.2.0.0/24")
        .await;
    second.fill("#field-description", "the head office").await;
    first.click(SAVE).await;
    first.see(".facts", "10.2.0.0/24").await;
    second.click(SAVE).await;
    second
        .see(
            "p.warning",
            "Saved. Meanwhile carol changed the subnets: 10.1.0.0/24 → ",
        )
        .await;
    assert_eq!(
        (field("subnets").await, field("description").await),
        (
            json!(["10.1.0.0/24", "10.2.0.0/24"]),
            json!("the head office")
        )
    );

    // The same field: nothing is saved, and what both wrote is in sight.
    opens(&first).await;
    opens(&second).await;
    first.fill("#field-description", "of carol").await;
    first.fill("#field-labels", "region=emea").await;
    second.fill("#field-description", "of the owner").await;
    second.fill("#field-endpoint", "198.51.100.7:51820").await;
    first.click(SAVE).await;
    first.see("p.free", "of carol").await;
    second.click(SAVE).await;
    second
        .see(
            "#conflict",
            "Nothing is saved: carol changed the description: the head office → of carol",
        )
        .await;
    second
        .see("#conflict", "You wrote: description: of the owner")
        .await;
    let typed = "return ['description', 'endpoint', 'labels'].map((name) => \
        document.getElementById(`field-${name}`).value)";
    assert_eq!(
        second.run(typed, json!([])).await,
        json!(["of the owner", "198.51.100.7:51820", ""])
    );
    second.keep("conflict").await;
    assert_eq!(field("description").await, "of carol");

    // Theirs comes into the form, and what else was typed stays.
    second.click("#load-theirs").await;
    assert_eq!(
        second.run(typed, json!([])).await,
        json!(["of carol", "198.51.100.7:51820", "region=emea"])
    );
    second
        .see("#conflict", "You wrote: description: of the owner")
        .await;
    second.click(SAVE).await;
    second.see(".facts", "198.51.100.7:51820").await;
    assert_eq!(
        (field("description").await, field("labels").await),
        (json!("of carol"), json!({"region": "emea"}))
    );

    // Or mine takes the place of theirs, and of nothing else.
    opens(&second).await;
    second.fill("#field-description", "mine").await;
    let theirs = json!({"description": "theirs", "labels": {"region": "apac"}});
    coordinator.patch("/sites/dublin", theirs).await.expect(200);
    second.click(SAVE).await;
    second.click("#keep-mine").await;
    second.see("p.free", "mine").await;
    assert_eq!(
        (field("description").await, field("labels").await),
        (json!("mine"), json!({"region": "apac"}))
    );
    for browser in [&first, &second] {
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_site_and_a_gateway_that_somebody_changed_meanwhile_are_not_removed_nor_renamed() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    let browser = opened(&coordinator, &coordinator.token).await;
    browser.go("#/sites/dublin").await;
    browser.see("main h1", "dublin").await;

    browser.click("button[id^=rename-]").await;
    browser.fill("#node-name", "mine").await;
    coordinator
        .patch("/nodes/dublin", json!({"name": "theirs"}))
        .await
        .expect(200);
    browser.click("#save-name").await;
    browser
        .see(
            "#node-name-error",
            "first start changed the name: dublin → theirs",
        )
        .await;
    browser.click("#save-name").await;
    browser.see("table[aria-label=Gateways]", "mine").await;

    browser.click("button[id^=revoke-]").await;
    browser.see("dialog", "Revoke mine?").await;
    coordinator
        .patch("/nodes/mine", json!({"name": "another"}))
        .await
        .expect(200);
    browser.click("dialog button.danger").await;
    browser
        .see(".toast", "first start changed the name: mine → another")
        .await;
    coordinator.get("/nodes/another").await.expect(200);

    browser.click("#remove").await;
    browser.see("dialog", "Remove dublin?").await;
    coordinator
        .patch("/sites/dublin", json!({"subnets": ["10.9.0.0/24"]}))
        .await
        .expect(200);
    browser.click("dialog button.danger").await;
    browser.see(".toast:first-child", "It is still there").await;
    browser
        .see(
            ".toast:first-child",
            "changed the subnets: none → 10.9.0.0/24",
        )
        .await;
    coordinator.get("/sites/dublin").await.expect(200);
    browser.click("#remove").await;
    browser.click("dialog button.danger").await;
    browser.see("main h1", "0 sites").await;
    send(coordinator.request(Method::GET, "/sites/dublin"))
        .await
        .expect(404);
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}
