//! Compressed clusters, as cloud images have them.

use std::collections::VecDeque;
use std::sync::Arc;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::entry::Compressed;

/// Bytes of inflated clusters kept: a reader that goes on in small steps must not inflate a
/// cluster for each of them.
const CACHE_BYTES: usize = 1 << 20;

/// The clusters inflated last.
#[derive(Default)]
pub(super) struct InflateCache(VecDeque<(Compressed, Arc<[u8]>)>);

impl InflateCache {
    pub fn get(&self, place: Compressed) -> Option<Arc<[u8]>> {
        self.0.iter().find(|(key, _)| *key == place).map(|(_, data)| Arc::clone(data))
    }

    pub fn put(&mut self, place: Compressed, data: Arc<[u8]>) {
        while !self.0.is_empty() && (self.0.len() + 1) * data.len() > CACHE_BYTES {
            self.0.pop_front();
        }
        self.0.push_back((place, data));
    }
}

/// Inflates a raw deflate stream, which may be followed by anything, to exactly `len` bytes.
pub(super) fn inflate(stream: &[u8], len: usize) -> Option<Arc<[u8]>> {
    let mut out = vec![0; len];
    let mut state = DecompressorOxide::new();
    let (status, _, written) =
        decompress(&mut state, stream, &mut out, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
    let complete = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == len;
    complete.then(|| out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_with_a_tail_is_inflated() {
        let data: Vec<u8> = (0..65536u32).map(|i| (i / 7) as u8).collect();
        let mut stream = miniz_oxide::deflate::compress_to_vec(&data, 6);
        stream.extend([0xff; 100]);
        assert_eq!(inflate(&stream, 65536).unwrap()[..], data);
    }

    #[test]
    fn short_long_and_broken_streams_are_refused() {
        let stream = miniz_oxide::deflate::compress_to_vec(&[5; 1000], 6);
        assert!(inflate(&stream, 1001).is_none());
        assert!(inflate(&stream[..4], 1000).is_none());
        assert!(inflate(&[0xff; 64], 1000).is_none());
        assert!(inflate(&[], 1000).is_none());
    }

    #[test]
    fn the_cache_stays_in_bounds() {
        let mut cache = InflateCache::default();
        let place = |n| Compressed { offset: n, len: 1 };
        for n in 0..100 {
            cache.put(place(n), vec![0; 65536].into());
        }
        assert!(cache.0.len() <= 16);
        assert!(cache.get(place(99)).is_some());
        assert!(cache.get(place(0)).is_none());
        cache.put(place(200), vec![0; 2 << 20].into());
        assert!(cache.get(place(200)).is_some());
    }
}
