//! The bytes of an input, taken from the front. Where there are no more, everything is 0.

use arbitrary::Unstructured;

pub(crate) struct Dish<'a>(Unstructured<'a>);

impl<'a> Dish<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Dish(Unstructured::new(data))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// From 0 to `n` - 1, of one byte.
    pub(crate) fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()].clone()
    }

    /// A number, mostly one that things go wrong at.
    pub(crate) fn number(&mut self) -> u64 {
        let near = |at: u64, by: u8| at.wrapping_add(u64::from(by)).wrapping_sub(2);
        match self.below(8) {
            0..=2 => self.byte().into(),
            3 => self.u16().into(),
            4 => u64::from(self.byte()) * 512,
            5 => {
                let (shift, by) = (self.byte() % 64, self.byte() % 5);
                near(1 << shift, by)
            }
            6 => u64::MAX - u64::from(self.byte()),
            _ => self.u64(),
        }
    }

    /// At most `n` bytes; fewer where there are no more.
    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let n = n.min(self.0.len());
        self.0.bytes(n).unwrap_or(&[])
    }

    /// Fewer than `n` bytes.
    pub(crate) fn few(&mut self, n: u8) -> &'a [u8] {
        let n = self.below(n);
        self.bytes(n.into())
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}
