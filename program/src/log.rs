//! Log lines, on standard error.
//!
//! Much of them is what another machine said. Nothing of it reaches a terminal that the terminal
//! would obey: it is written out.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt,
    fmt::{self, format::debug_fn},
    prelude::*,
};
use wattle_wire::text::{JsonWriter, visible};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Which log lines are written: directives as `info,hyper=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        EnvFilter::builder()
            .parse(text)
            .map_err(|error| format!("{error}; write it as `info` or `info,hyper=debug`"))?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Writes log lines from now on: those of `filter`, or of `usual` without one.
pub fn start(format: LogFormat, filter: Option<&LogFilter>, usual: &str) {
    let directives = filter.map_or(usual, |filter| &filter.0);
    let registry = tracing_subscriber::registry().with(EnvFilter::new(directives));
    let layer = fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => {
            let fields = debug_fn(|writer, field, value| {
                let value = format!("{value:?}");
                match field.name() {
                    "message" => write!(writer, "{}", visible(&value)),
                    name => write!(writer, "{name}={}", visible(&value)),
                }
            });
            let layer = layer.fmt_fields(fields.delimited(" "));
            registry.with(layer.with_writer(io::stderr)).init();
        }
        LogFormat::Json => {
            let writer = || JsonWriter(io::stderr());
            registry.with(layer.json().with_writer(writer)).init();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused() {
        for good in [
            "info",
            "info,wattle_server=debug",
            "off",
            "warn,hyper::proto=trace",
        ] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        for bad in ["info,hyper=loud", "a=b=c"] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
    }
}
