//! Messages of every form, split in every way: the cutter comes to the same, and looks at nothing twice.

use super::{Cutter, Progress, Walk};
use crate::limits::Limits;
use crate::message::Message;

/// Whole messages: every format and every length where a format ends, in each place of a message, and every form of a header.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for value in values() {
        all.extend(around(&value));
    }
    for head in [&[0x94][..], &[0xdc, 0, 4], &[0xdd, 0, 0, 0, 4]] {
        for id in forms_of_number(7) {
            for name in forms_of_text(b"echo") {
                all.extend(forms_of_number(0).map(|kind| [head, &kind, &id, &name, &[0x91, 5]].concat()));
            }
            all.extend(forms_of_number(1).map(|kind| [head, &kind, &id, &[0xc0, 5]].concat()));
        }
    }
    for head in [&[0x93][..], &[0xdc, 0, 3], &[0xdd, 0, 0, 0, 3]] {
        for kind in forms_of_number(2) {
            all.extend(forms_of_text(b"echo").map(|name| [head, &kind, &name, &[0x90]].concat()));
        }
    }
    all
}

/// Messages that have `value` as an argument, between others, inside containers, as key, result and error.
fn around(value: &[u8]) -> [Vec<u8>; 9] {
    let request = |params: &[&[u8]]| [&[0x94, 0, 1, 0xa1, b'm'][..], &params.concat()].concat();
    [
        request(&[&[0x91], value]),
        request(&[&[0x93, 1], value, &[0xa1, b'x']]),
        request(&[&[0xdd, 0, 0, 0, 2], value, value]),
        request(&[&[0x91, 0x91, 0x92], value, &[0x90]]),
        request(&[&[0x91, 0x82], value, &[1, 0xc3], value]),
        request(&[&[0x91, 0xdf, 0, 0, 0, 1, 0x81], value, value, value]),
        [&[0x93, 2, 0xa1, b'm', 0x91], value].concat(),
        [&[0x94, 1, 1, 0xc0], value].concat(),
        [&[0x94, 1, 1, 0x92, 0], value, &[0xc0]].concat(),
    ]
}

fn values() -> Vec<Vec<u8>> {
    let fixed = [0x00, 0x7f, 0xe0, 0xff, 0xc0, 0xc2, 0xc3].map(|byte| vec![byte]);
    let numbers = [(0xca, 4), (0xcb, 8), (0xcc, 1), (0xcd, 2), (0xce, 4), (0xcf, 8), (0xd0, 1), (0xd1, 2), (0xd2, 4)];
    let numbers = numbers.into_iter().chain([(0xd3, 8)]);
    let ext = [(0xd4, 1), (0xd5, 2), (0xd6, 4), (0xd7, 8), (0xd8, 16)].map(|(marker, len)| data(&[marker, 0xff], len));
    let mut all: Vec<_> = fixed.into_iter().chain(ext).collect();
    all.extend(
        numbers.flat_map(|(marker, len)| [vec![0x80; len], vec![0xff; len]].map(|n| [vec![marker], n].concat())),
    );
    for len in [0, 1, 15, 16, 17, 31, 32, 255, 256, 300] {
        for (one, two, four) in [(0xd9, 0xda, 0xdb), (0xc4, 0xc5, 0xc6)] {
            all.extend(lengths(one, two, four, len).map(|head| data(&head, len)));
        }
        all.extend(lengths(0xc7, 0xc8, 0xc9, len).map(|head| data(&[head, vec![5]].concat(), len)));
        all.extend((len < 32).then(|| data(&[0xa0 | len as u8], len)));
    }
    for len in [0, 1, 15, 16, 40] {
        all.extend([vec![0xdc, 0, len], vec![0xdd, 0, 0, 0, len]].map(|head| [head, vec![7; len.into()]].concat()));
        all.extend(
            [vec![0xde, 0, len], vec![0xdf, 0, 0, 0, len]].map(|head| [head, vec![7; len as usize * 2]].concat()),
        );
        all.extend((len < 16).then(|| [vec![0x90 | len], vec![0xc0; len.into()]].concat()));
        all.extend((len < 16).then(|| [vec![0x80 | len], vec![0xc0; len as usize * 2]].concat()));
    }
    all
}

/// A head and so many bytes that would be wrong anywhere else.
fn data(head: &[u8], len: usize) -> Vec<u8> {
    [head, &vec![0xc1; len]].concat()
}

/// Each form of a length that can hold it, the needlessly long ones too.
fn lengths(one: u8, two: u8, four: u8, len: usize) -> impl Iterator<Item = Vec<u8>> {
    let bytes = (len as u32).to_be_bytes();
    let short = (len < 256).then(|| vec![one, bytes[3]]);
    short.into_iter().chain([vec![two, bytes[2], bytes[3]], [vec![four], bytes.to_vec()].concat()])
}

fn forms_of_number(number: u8) -> impl Iterator<Item = Vec<u8>> {
    let wide = [(0xcc, 1), (0xcd, 2), (0xce, 4), (0xcf, 8), (0xd0, 1), (0xd1, 2), (0xd2, 4), (0xd3, 8)];
    let wide = wide.into_iter().map(move |(marker, len)| [vec![marker], vec![0; len - 1], vec![number]].concat());
    [vec![number]].into_iter().chain(wide)
}

fn forms_of_text(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let heads = [lengths(0xd9, 0xda, 0xdb, text.len()), lengths(0xc4, 0xc5, 0xc6, text.len())];
    let heads = heads.into_iter().flatten().chain([vec![0xa0 | text.len() as u8]]);
    heads.map(move |head| [&head, text].concat())
}

impl Walk {
    /// All that a walk goes on from. Counters below the depth are left over from containers that have ended.
    fn state(&self) -> (usize, usize, u32, &[u32]) {
        (self.at, self.depth, self.elements_left, &self.left[..=self.depth])
    }
}

/// What was seen of a message, as a cutter and what it said.
type Seen = (Cutter, Progress);

/// Shows `cutter` the first bytes of a message, with nothing in the place of those that it has passed.
fn show(cutter: &Cutter, message: &[u8], end: usize) -> Seen {
    let mut cutter = cutter.clone();
    let mut bytes = message[..end].to_vec();
    let passed = cutter.walk.at.min(end);
    bytes[..passed].fill(0xc1);
    let progress = cutter.advance(&bytes).unwrap_or_else(|error| panic!("{error}: {message:02x?} up to {end}"));
    (cutter, progress)
}

/// Whatever was seen first, the same is known after as many bytes: from none, one, two and three bytes before. So every
/// schedule of steps of one to three bytes comes to the same, however many there are, and so does a cut at any one place.
fn check(message: &[u8]) {
    let fresh = Cutter::new(&Limits::default());
    let mut seen: Vec<Seen> = vec![(fresh.clone(), Progress::NeedMore { at_least: 1 })];
    for end in 1..=message.len() {
        let (cutter, progress) = show(&fresh, message, end);
        for (before, _) in seen.iter().rev().take(3) {
            let (other, said) = show(before, message, end);
            let is_same = said == progress && other.walk.state() == cutter.walk.state();
            assert!(is_same, "{message:02x?}: {end} bytes: {other:?} {said:?} instead of {cutter:?}");
        }
        assert_eq!(progress == (Progress::Whole { len: message.len() }), end == message.len(), "{message:02x?}");
        let (_, rest) = show(&cutter, message, message.len());
        assert!(end == message.len() || rest == Progress::Whole { len: message.len() }, "{message:02x?} from {end}");
        seen.push((cutter, progress));
    }
}

#[test]
fn every_split_of_every_form_of_a_message_gives_the_same() {
    let messages = messages();
    assert!(messages.len() >= 2000, "{} messages", messages.len());
    messages.iter().for_each(|message| check(message));
}

#[test]
fn every_form_of_a_message_is_read_and_no_prefix_of_one_is() {
    let limits = Limits::default();
    for message in messages() {
        assert!(Message::parse(&message, &limits).is_ok(), "{message:02x?}");
        let end_of_head = message.len().min(40);
        for end in 0..end_of_head {
            let mut cutter = Cutter::new(&limits);
            assert!(
                matches!(cutter.advance(&message[..end]), Ok(Progress::NeedMore { .. })),
                "{message:02x?} to {end}"
            );
        }
    }
}
