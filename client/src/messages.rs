//! The messages of a coordinator's stream, as its bytes come.

use std::{mem, time::Duration};

use anyhow::{Context, anyhow};
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncRead;
use tokio_util::codec::{AnyDelimiterCodec, FramedRead};
use wattle_wire::stream::{SILENCE_S, StreamMessage};

/// The longest line of a stream, in bytes: a message, and what precedes it.
const LONGEST_LINE: usize = StreamMessage::LONGEST + 64;
/// How many lines in a row may tell nothing; a coordinator sends one after each message.
const MOST_EMPTY: usize = 64;
/// The memory of a longer line, in bytes, is not kept for the next one.
const LONG_LINE: usize = 64 << 10;

/// Server-sent events as the coordinator writes them: each message one `data:` line; other lines
/// (comments, blanks) are signs of life.
///
/// Neither a line without end nor lines without a message keep it busy: it hangs up. Each message
/// comes with its length in bytes.
pub(crate) fn messages(
    bytes: impl AsyncRead + Unpin,
) -> impl Stream<Item = anyhow::Result<(StreamMessage, usize)>> {
    let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), Vec::new(), LONGEST_LINE);
    let lines = FramedRead::new(bytes, codec);
    futures_util::stream::try_unfold(lines, |mut lines| async move {
        for _ in 0..=MOST_EMPTY {
            let silence = Duration::from_secs(SILENCE_S);
            let line = tokio::time::timeout(silence, lines.next())
                .await
                .map_err(|_| anyhow!("the coordinator sent nothing for {SILENCE_S} s"))?;
            let Some(line) = line else { return Ok(None) };
            let line = line.context("the stream broke")?;
            let message = line.strip_prefix(b"data:").map(StreamMessage::from_json);
            let length = line.len();
            if length > LONG_LINE {
                drop(line);
                let rest = mem::take(lines.read_buffer_mut());
                lines.read_buffer_mut().extend_from_slice(&rest);
            }
            if let Some(message) = message {
                let message =
                    message.context("the coordinator sent a message that cannot be read")?;
                return Ok(Some(((message, length), lines)));
            }
        }
        Err(anyhow!("the coordinator sends lines that tell nothing"))
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use wattle_wire::{ids::Position, stream::ByeReason};

    use super::*;

    #[tokio::test]
    async fn messages_are_the_data_lines_of_the_stream() {
        let long = format!(": {}", "x".repeat(LONG_LINE));
        let lines = [
            &long,
            "",
            "event: message",
            r#"data: {"type":"heartbeat","position":"1.2"}"#,
            "",
            r#"data:{"type":"bye","reason":"shutdown"}"#,
        ];
        let messages: Vec<_> = messages(lines.join("\n").as_bytes())
            .map(|message| message.unwrap().0)
            .collect()
            .await;
        let position = Position {
            epoch: 1,
            revision: 2,
        };
        assert_eq!(
            messages,
            [
                StreamMessage::Heartbeat { position },
                StreamMessage::Bye {
                    reason: ByeReason::Shutdown
                }
            ]
        );
    }

    #[tokio::test]
    async fn e15_lines_without_an_end_or_without_a_message_end_the_stream() {
        for (pattern, expected) in [
            ("[0,", "the stream broke: max chunk length exceeded"),
            (":\n\n", "the coordinator sends lines that tell nothing"),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            let sender = tokio::spawn(async move {
                let (block, mut sent) = (pattern.repeat(20_000), 0);
                while theirs.write_all(block.as_bytes()).await.is_ok() {
                    sent += block.len();
                }
                sent
            });
            let mut messages = Box::pin(messages(ours));
            let error = messages.next().await.unwrap().unwrap_err();
            assert_eq!(format!("{error:#}"), expected);
            drop(messages);
            let sent = sender.await.unwrap();
            assert!(sent < LONGEST_LINE + (1 << 20), "it read {sent} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_coordinator_is_hung_up_on() {
        let (_coordinator, silent) = tokio::io::duplex(1);
        let mut messages = Box::pin(messages(silent));
        let error = messages.next().await.unwrap().unwrap_err();
        assert!(
            error.to_string().contains("sent nothing for 30 s"),
            "{error}"
        );
    }
}
