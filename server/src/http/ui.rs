//! The web page at `/`: plain files, held by the program itself. Everything it shows it asks of the
//! REST interface, with the api token of who looks.

use std::{collections::BTreeMap, sync::LazyLock};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::path::Path;
use crate::{error, state::app::App};

/// What the page may do: load what this coordinator serves, talk to it, and nothing else.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors \
    'none'; object-src 'none'";

/// The tag of each file of the page, by its name.
static ETAGS: LazyLock<BTreeMap<&str, HeaderValue>> = LazyLock::new(|| {
    let tags = ASSETS.iter().chain([&INDEX]).filter_map(|asset| {
        let digest = digest(&SHA256, asset.bytes);
        let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]));
        Some((asset.name, HeaderValue::try_from(tag).ok()?))
    });
    tags.collect()
});

/// A file of the page.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../ui/", $name)),
        }
    };
}

const INDEX: Asset = asset!("index.html", "text/html; charset=utf-8");

const ASSETS: [Asset; 18] = [
    asset!("icon.svg", "image/svg+xml"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("api.js", "text/javascript; charset=utf-8"),
    asset!("change.js", "text/javascript; charset=utf-8"),
    asset!("dom.js", "text/javascript; charset=utf-8"),
    asset!("events.js", "text/javascript; charset=utf-8"),
    asset!("form.js", "text/javascript; charset=utf-8"),
    asset!("held.js", "text/javascript; charset=utf-8"),
    asset!("link.js", "text/javascript; charset=utf-8"),
    asset!("main.js", "text/javascript; charset=utf-8"),
    asset!("matrix.js", "text/javascript; charset=utf-8"),
    asset!("mesh.js", "text/javascript; charset=utf-8"),
    asset!("overview.js", "text/javascript; charset=utf-8"),
    asset!("problem.js", "text/javascript; charset=utf-8"),
    asset!("ring.js", "text/javascript; charset=utf-8"),
    asset!("site.js", "text/javascript; charset=utf-8"),
    asset!("sites.js", "text/javascript; charset=utf-8"),
    asset!("tokens.js", "text/javascript; charset=utf-8"),
];

/// The page, for anybody: there is nothing of the mesh in it.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/", get(index))
        .route("/ui/{name}", get(asset))
        .layer(from_fn(guard))
}

async fn index(headers: HeaderMap) -> Response {
    serve(&INDEX, &headers)
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => serve(asset, &headers),
        None => error::respond(&error::not_found("file")),
    }
}

fn serve(asset: &Asset, headers: &HeaderMap) -> Response {
    let etag = &ETAGS[asset.name];
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|known| known == etag);
    // After an upgrade the page must be the coordinator's own: the browser asks each time, and is
    // told when nothing changed.
    let common = [
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if known {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (
        common,
        [(header::CONTENT_TYPE, asset.content_type)],
        asset.bytes,
    )
        .into_response()
}

async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui");
        let found: BTreeSet<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let served: BTreeSet<_> = ASSETS
            .iter()
            .chain([&INDEX])
            .map(|asset| asset.name.to_owned())
            .collect();
        assert_eq!(found, served);
    }

    #[test]
    fn nothing_in_the_page_reads_text_as_html() {
        for asset in ASSETS.iter().chain([&INDEX]) {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=",
                "http://cdn",
                "https://",
            ] {
                assert!(!text.contains(forbidden), "{forbidden} in {}", asset.name);
            }
        }
    }
}
