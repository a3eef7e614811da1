//! Values with small stable numbers.
//!
//! Decides that a number is given out again once its value is gone, so that four bytes name a
//! watcher or a range for as long as it lives. Used by the hub and its range lookup.

/// Values by number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// Without values.
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// How many values there are.
    pub(super) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Keeps `value` and gives it a number.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            let slot = &mut self.slots[number as usize];
            assert!(slot.is_none(), "number {number} is free and taken");
            *slot = Some(value);
            return number;
        }
        let number = u32::try_from(self.slots.len()).expect("memory ends before the numbers do");
        self.slots.push(Some(value));
        number
    }

    /// Gives up the value of `number`.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let value = self.slots[number as usize].take().expect("the number is in use");
        self.free.push(number);
        value
    }

    /// Every value with its number.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0_u32..).zip(&mut self.slots).filter_map(|(number, slot)| Some((number, slot.as_mut()?)))
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.slots[number as usize].as_ref().expect("the number is in use")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.slots[number as usize].as_mut().expect("the number is in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_number_is_given_out_again() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), "a");
        assert_eq!(slab.insert("c"), a);
        assert_eq!((slab[a], slab[b], slab.len()), ("c", "b", 2));
    }
}
