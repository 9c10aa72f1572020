//! A stream that is read in short pieces.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

/// Shorter than what hyper reads at first: it doubles a buffer that a read has filled, and holds on to it while the connection is idle.
const LONGEST: usize = 8 * 1024 - 1;

/// Reads of less than 8 KiB. A stream with a buffer of its own, as one that decrypts has, is copied in more pieces, and read as often.
#[derive(Debug)]
pub struct ShortReads<S>(pub S);

impl<S: AsyncBufRead + Unpin> AsyncRead for ShortReads<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.get_mut().0;
        let buffered = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))?;
        // In pieces of about the same length.
        let pieces = buffered.len().div_ceil(LONGEST).max(1);
        let len = buffered.len().div_ceil(pieces).min(buf.remaining());
        buf.put_slice(buffered.get(..len).unwrap_or_default());
        Pin::new(stream).consume(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ShortReads<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, BufReader};

    #[tokio::test]
    async fn everything_arrives_in_short_pieces() {
        const { assert!(LONGEST < 8 << 10) };
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut stream = ShortReads(BufReader::with_capacity(20_000, &sent[..]));
        let (mut piece, mut received) = (vec![0; 50_000], Vec::new());
        loop {
            let len = stream.read(&mut piece).await.unwrap();
            assert!(len <= LONGEST);
            if len == 0 {
                break;
            }
            received.extend_from_slice(&piece[..len]);
        }
        assert!(received == sent);
        assert_eq!(ShortReads(BufReader::new(&sent[..])).read(&mut [0; 10]).await.unwrap(), 10);
    }
}
