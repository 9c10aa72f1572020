//! HTTP/2 by hand: what no library sends, and what no library shows.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Types of frames (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames. That of SETTINGS and PING which acknowledges them is [`END_STREAM`]'s.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Codes of errors.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;

/// The preface, and settings by which the answers' fields refer to nothing: a table of no bytes.
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0])].concat()
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// These fields as HPACK literals, whatever they are: not indexed, and not compressed.
pub fn fields<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: impl IntoIterator<Item = (N, V)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            // An integer with a prefix of seven bits (RFC 7541, section 5.1).
            let mut rest = text.len();
            if rest < 127 {
                block.push(rest as u8);
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push(rest as u8 | 128);
                    rest >>= 7;
                }
                block.push(rest as u8);
            }
            block.extend(text);
        }
    }
    block
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The last stream that a GOAWAY speaks of, and its error.
    pub fn goaway(&self) -> Option<(u32, u32)> {
        let word = |at: usize| Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?));
        if self.kind == GOAWAY { Some((word(0)? & 0x7fff_ffff, word(4)?)) } else { None }
    }

    /// The error of a RST_STREAM.
    pub fn reset(&self) -> Option<u32> {
        let code = self.payload.get(..4)?.try_into().ok()?;
        (self.kind == RST_STREAM).then(|| u32::from_be_bytes(code))
    }

    /// The status of an answer's head, which is its first field.
    pub fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        // A change of the table's size may come first.
        let block = self.payload.iter().position(|byte| byte & 0xe0 != 0x20).map(|at| &self.payload[at..])?;
        match *block {
            // By RFC 7541, appendix A.
            [indexed @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
            [0x48 | 0x08 | 0x18, len, ref rest @ ..] => {
                let text = rest.get(..usize::from(len & 0x7f))?;
                let digits = if len & 0x80 == 0 { String::from_utf8(text.to_vec()).ok()? } else { digits(text) };
                digits.parse().ok()
            }
            _ => None,
        }
    }
}

/// Three digits in the Huffman code of RFC 7541, appendix B.
fn digits(text: &[u8]) -> String {
    let bits: Vec<_> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let value = |bits: &[u8]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    let (mut rest, mut digits) = (&bits[..], String::new());
    while digits.len() < 3 && rest.len() >= 5 {
        let (digit, len) = match value(&rest[..5]) {
            short @ 0..=2 => (short, 5),
            _ => (value(&rest[..rest.len().min(6)]).wrapping_sub(0b01_1001 - 3), 6),
        };
        digits.push(char::from(b'0' + digit));
        rest = rest.get(len..).unwrap_or_default();
    }
    digits
}

/// A connection, frame by frame.
pub struct Connection<S> {
    pub stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over this stream, which is at its beginning.
    pub async fn new(mut stream: S) -> io::Result<Self> {
        stream.write_all(&preface()).await?;
        Ok(Self { stream })
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// The next frame, or nothing where the connection has ended as it should.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.stream.read(&mut head[..1]).await? {
            0 => return Ok(None),
            _ => self.stream.read_exact(&mut head[1..]).await?,
        };
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload }))
    }

    /// The next frame that is not about windows or settings. Settings are acknowledged.
    pub async fn next_of_note(&mut self) -> io::Result<Option<Frame>> {
        loop {
            match self.next().await? {
                Some(Frame { kind: SETTINGS, flags, .. }) if flags & ACK == 0 => {
                    self.send(frame(SETTINGS, ACK, 0, &[])).await?;
                }
                Some(Frame { kind: SETTINGS | WINDOW_UPDATE, .. }) => {}
                other => return Ok(other),
            }
        }
    }
}
