//! Compressed kernels: what a file is compressed with, and its content.

use std::fmt;
use std::io::{self, Read};

use super::error::ImageError;

/// The most bytes that a compressed kernel may open to.
const LIMIT: u64 = 1 << 30;
/// The most memory, in KiB, that a decoder may take for what it looks back at.
const DECODER_LIMIT_KIB: u32 = 256 << 10;

/// A format of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// xz (The .xz File Format 1.2).
    Xz,
    /// LZ4 frames, also the old ones that Linux uses.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
    /// bzip2.
    Bzip2,
    /// LZMA, before xz.
    Lzma,
    /// lzop.
    Lzo,
}

/// What each format begins with.
const MAGICS: [(&[u8], Compression); 8] = [
    (&[0x1f, 0x8b, 0x08], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x04, 0x22, 0x4d, 0x18], Compression::Lz4),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0, 0], Compression::Lzma),
    (&[0x89, b'L', b'Z', b'O', 0], Compression::Lzo),
];

impl Compression {
    /// Recognizes a file by its first bytes.
    #[must_use]
    pub fn of(file: &[u8]) -> Option<Self> {
        MAGICS
            .iter()
            .find(|(magic, _)| file.starts_with(magic))
            .map(|(_, format)| *format)
    }

    /// The command that opens such a file.
    fn command(self) -> &'static str {
        match self {
            Self::Gzip => "gzip -d",
            Self::Xz => "xz -d",
            Self::Lz4 => "lz4 -d",
            Self::Zstd => "zstd -d",
            Self::Bzip2 => "bzip2 -d",
            Self::Lzma => "xz -d --format=lzma",
            Self::Lzo => "lzop -d",
        }
    }

    /// Returns the content of a file in this format.
    ///
    /// # Errors
    /// If the file is damaged, its content too long, or the format not supported.
    pub fn open(self, file: &[u8]) -> Result<Vec<u8>, ImageError> {
        self.open_within(file, LIMIT)
    }

    /// The same, with a limit on the content's length in bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_within(self, file: &[u8], limit: u64) -> Result<Vec<u8>, ImageError> {
        let damaged = |error: &io::Error| ImageError::DamagedCompression {
            format: self,
            kind: error.kind(),
        };
        let mut content = Vec::new();
        // One byte more than allowed, which shows that it is too long.
        let read = match self {
            Self::Gzip => flate2::bufread::MultiGzDecoder::new(file)
                .take(limit + 1)
                .read_to_end(&mut content),
            Self::Xz => lzma_rust2::XzReader::new_mem_limit(file, true, DECODER_LIMIT_KIB)
                .take(limit + 1)
                .read_to_end(&mut content),
            Self::Lz4 => lz4_flex::frame::FrameDecoder::new(file)
                .take(limit + 1)
                .read_to_end(&mut content),
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(file)
                    .map_err(|error| damaged(&io::Error::other(error)))?;
                decoder.take(limit + 1).read_to_end(&mut content)
            }
            Self::Bzip2 | Self::Lzma | Self::Lzo => {
                return Err(ImageError::Compressed {
                    format: self,
                    command: self.command(),
                });
            }
        };
        read.map_err(|error| damaged(&error))?;
        if content.len() as u64 > limit {
            return Err(ImageError::CompressedTooLong {
                format: self,
                limit,
            });
        }
        Ok(content)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzop",
        })
    }
}
