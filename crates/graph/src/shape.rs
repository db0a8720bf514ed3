//! Shapes and broadcasting.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The extents of a tensor, outermost first; empty for a scalar.
///
/// ```
/// use onesigma_graph::Shape;
/// let shape = Shape::from([8, 512, 768]);
/// assert_eq!((shape.numel(), shape.rows(), shape.last()), (3_145_728, 4096, 768));
/// assert_eq!(shape.strides(), [393_216, 768, 1]);
/// assert_eq!(shape.broadcast(&Shape::from([512, 1])), Some(shape));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The shape of a scalar.
    pub const fn scalar() -> Self {
        Self(Vec::new())
    }

    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements; 1 for a scalar. Saturates instead of overflowing, so that a hostile
    /// shape is seen as too large rather than as small.
    pub fn numel(&self) -> usize {
        self.0.iter().fold(1, |product, &dim| product.saturating_mul(dim))
    }

    /// The extent of the last axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Product of all extents but the last; 1 for scalars and vectors. Saturates as
    /// [`numel`](Self::numel) does.
    pub fn rows(&self) -> usize {
        let lead = self.0.split_last().map_or(&[][..], |(_, lead)| lead);
        lead.iter().fold(1, |product: usize, &dim| product.saturating_mul(dim))
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.rank()];
        for axis in (1..self.rank()).rev() {
            strides[axis - 1] = usize::saturating_mul(strides[axis], self.0[axis]);
        }
        strides
    }

    /// The shape that both broadcast to by NumPy's rule (axes aligned at the end, size 1
    /// stretches), or `None`.
    pub fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let at = |shape: &Self, axis: usize| {
            (axis + shape.rank()).checked_sub(rank).map_or(1, |axis| shape.0[axis])
        };
        (0..rank)
            .map(|axis| match (at(self, axis), at(other, axis)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    /// Strides in elements with which a tensor of this shape is read along the axes of `target`:
    /// 0 along broadcast axes. The caller makes sure that `self` broadcasts to `target`.
    pub fn broadcast_strides(&self, target: &Self) -> Vec<usize> {
        let lead = target.rank() - self.rank();
        let own = self.strides();
        (0..target.rank())
            .map(|axis| match axis.checked_sub(lead) {
                Some(own_axis) if self.0[own_axis] == target.0[axis] => own[own_axis],
                _ => 0,
            })
            .collect()
    }

    /// Axes of `target` along which a tensor of this shape is repeated.
    pub fn broadcast_axes(&self, target: &Self) -> Vec<usize> {
        let lead = target.rank() - self.rank();
        (0..target.rank())
            .filter(|&axis| axis < lead || self.0[axis - lead] != target.0[axis])
            .collect()
    }

    /// This shape with `axes` reduced: removed, or kept with size 1.
    pub fn reduced(&self, axes: &[usize], keep_dims: bool) -> Self {
        let dims = self.0.iter().enumerate().filter_map(|(axis, &dim)| {
            match (axes.contains(&axis), keep_dims) {
                (false, _) => Some(dim),
                (true, true) => Some(1),
                (true, false) => None,
            }
        });
        Self(dims.collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Self(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(dims.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let a = Shape::from([2, 1, 4]);
        assert_eq!(a.broadcast(&Shape::from([3, 4])), Some(Shape::from([2, 3, 4])));
        assert_eq!(a.broadcast(&Shape::scalar()), Some(a.clone()));
        assert_eq!(a.broadcast(&Shape::from([5])), None);
        let target = Shape::from([2, 3, 4]);
        assert_eq!(a.broadcast_strides(&target), [4, 0, 1]);
        assert_eq!(Shape::from([3, 1]).broadcast_axes(&target), [0, 2]);
    }

    #[test]
    fn reduction_removes_or_keeps_axes() {
        let shape = Shape::from([2, 3, 4]);
        assert_eq!(shape.reduced(&[1], false), Shape::from([2, 4]));
        assert_eq!(shape.reduced(&[0, 1, 2], true), Shape::from([1, 1, 1]));
    }

    #[test]
    fn a_hostile_shape_saturates() {
        assert_eq!(Shape::from([usize::MAX, 2]).numel(), usize::MAX);
        assert_eq!(Shape::from([usize::MAX, 2, 0]).rows(), usize::MAX);
        assert_eq!(Shape::from([0, usize::MAX, 2]).strides(), [usize::MAX, 2, 1]);
    }
}
