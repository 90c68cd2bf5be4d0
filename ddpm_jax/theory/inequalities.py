"""The inequalities and identities of information theory, each as a function of an instance of it.

An inequality returns both its sides, `Inequality(lower, upper)` with lower <= upper wherever its
condition holds; an identity returns `Identity(left, right)`, two computations of one number. What
is an entropy is in nats. Tables are as in information.py: arrays of masses that sum to one. So one
instance can be looked at (how far apart are the sides, and when do they meet?), a condition can be
dropped to see the statement fail, and a test can go through INEQUALITIES and IDENTITIES.

References: Cover and Thomas, Elements of Information Theory, 2nd edition (C&T below);
Sohl-Dickstein et al. 2015, https://arxiv.org/abs/1503.03585, appendix A;
Guo, Shamai and Verdú 2005, https://arxiv.org/abs/cs/0412108.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.process import check_order, q_marginal, q_transition
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.theory.information import (
  Data,
  Line,
  Normal,
  chain_information,
  conditional_entropy,
  conditional_information,
  cross_entropy,
  entropy,
  kl,
  mutual_information,
  posterior_entropy,
)


class Inequality(NamedTuple):
  """lower <= upper."""

  lower: Array
  upper: Array


class Identity(NamedTuple):
  """left = right."""

  left: Array
  right: Array


def gibbs(p: Array, q: Array) -> Inequality:
  """H(p) <= -Σ p log q, for tables p and q of one shape: the divergence is not negative.

  Equality if and only if p = q. It needs Σ q <= 1.
  Reference: C&T, theorem 2.6.3.
  """
  return Inequality(entropy(p), cross_entropy(p, q))


def jensen(f: Callable[[Array], Array], x: Array, p: Array) -> Inequality:
  """f(E X) <= E f(X), for f convex and elementwise, values x (n,) of masses p (n,).

  Equality for f affine; for f strictly convex if and only if X is constant. For f concave the sides
  change places.
  Reference: C&T, theorem 2.6.2.
  """
  return Inequality(f(p @ x), p @ f(x))


def conditioning(joint: Array) -> Inequality:
  """H(Y | X) <= H(Y), for a table (x, y): on average, knowledge does not add to uncertainty.

  Equality if and only if X and Y are independent. Of a single x it may be false.
  Reference: C&T, theorem 2.6.5.
  """
  return Inequality(conditional_entropy(joint), entropy(joint.sum(0)))


def data_processing(joint: Array) -> Inequality:
  """I(X; Z) <= I(X; Y), for a table (x, y, z) in which X → Y → Z is a Markov chain.

  Equality if and only if X → Z → Y is one too: Z keeps all that Y knew of X.
  Reference: C&T, theorem 2.8.1.
  """
  return Inequality(mutual_information(joint.sum(1)), mutual_information(joint.sum(2)))


def data_processing_divergence(p: Array, q: Array, channel: Array) -> Inequality:
  """KL(pK ‖ qK) <= KL(p ‖ q), for tables (x,) and a channel K (x, y) with rows that sum to one.

  Equality if and only if p / q is the same for all x that lead to one y.
  Reference: C&T, section 4.4, where K is the transition of a Markov chain.
  """
  return Inequality(kl(p @ channel, q @ channel), kl(p, q))


def chain_forgets(schedule: Schedule, data: Data, s: Time, t: Time) -> Inequality:
  """I(x0; xt) <= I(x0; xs), for s < t: data processing along the diffusion.

  Equality if and only if x0 is constant or alpha_s = 0.
  Reference: C&T, theorem 2.8.1, for x0 → xs → xt.
  """
  check_order(s, t, 'chain_forgets', '(None, None, 0, 0)')
  return Inequality(chain_information(schedule, data, t), chain_information(schedule, data, s))


def chain_merges(schedule: Schedule, p: Data, q: Data, s: Time, t: Time) -> Inequality:
  """KL(p_t ‖ q_t) <= KL(p_s ‖ q_s), for s < t: two laws of x0 come together along the diffusion.

  Equality if and only if p = q or alpha_s = 0.
  Reference: C&T, section 4.4.
  """
  check_order(s, t, 'chain_merges', '(None, None, None, 0, 0)')
  later, sooner = (p.marginal(schedule, time).kl(q.marginal(schedule, time)) for time in (t, s))
  return Inequality(later, sooner)


def posterior_entropy_lower(schedule: Schedule, data: Data, s: Time, t: Time) -> Inequality:
  """H(xt | xs) + H(xs | x0) - H(xt | x0) <= H(xs | xt), for s < t and sigma_s > 0.

  The left side is H(xs | xt, x0), by Bayes' rule under the condition x0 and because the chain is
  Markov: the entropy of `q_posterior`, known before any data is. Conditioning reduces entropy, by
  I(x0; xs | xt) = I(x0; xs) - I(x0; xt). Equality if and only if x0 is constant or alpha_s = 0.
  Reference: Sohl-Dickstein et al. 2015, appendix A.
  """
  forward = q_transition(schedule, data.mean, s, t).entropy()
  at_s, at_t = (q_marginal(schedule, data.mean, time).entropy() for time in (s, t))
  return Inequality(forward + at_s - at_t, posterior_entropy(schedule, data, s, t))


def posterior_entropy_upper(schedule: Schedule, data: Data, s: Time, t: Time) -> Inequality:
  """H(xs | xt) <= H(xt | xs), for s < t, sigma_s > 0, and if H(xs) <= H(xt).

  By Bayes' rule H(xs | xt) = H(xt | xs) + H(xs) - H(xt), which is all there is to it: equality if
  and only if H(xs) = H(xt), as for standard normal data on a variance-preserving path. There
  dH(xt) / dτ = (J(xt) - d) / 2 by de Bruijn's identity, with the clock dτ = -d log alpha²; since
  J >= d² / E‖xt - E xt‖² (Cramér-Rao), the condition holds all along if Σ Var x0 <= d.

  It fails where the data is wider than the prior, towards whose entropy H(xt) then falls. On that
  path, for normal data of variance V,
    Var[xs | xt] / Var[xt | xs] = (1 + (V - 1) alpha_s²) / (1 + (V - 1) alpha_t²),
  above 1 at every step if V > 1: for V = 4 and the linear chain of 1000 steps 1.0019 at t = 500
  and at most 1.0033, at t = 318.
  Reference: Sohl-Dickstein et al. 2015, appendix A.
  """
  forward = q_transition(schedule, data.mean, s, t).entropy()
  return Inequality(posterior_entropy(schedule, data, s, t), forward)


def entropy_power(first: Normal | Line, second: Normal | Line, total: Normal | Line) -> Inequality:
  """exp(2 H(X)/d) + exp(2 H(Y)/d) <= exp(2 H(X+Y)/d), for X and Y independent, in d dimensions.

  `total` is the law of X + Y, `first.plus(second)`. Equality if and only if both are normal with
  proportional covariances.
  Reference: C&T, theorem 17.7.3.
  """

  def power(law: Normal | Line) -> Array:
    return jnp.exp(2 * law.entropy() / jnp.size(law.mean))

  return Inequality(power(first) + power(second), power(total))


def fano(joint: Array, guess: Array) -> Inequality:
  """H(X | Y) <= h(e) + e log(n - 1), for a table (x, y) with n >= 2 rows.

  `guess` (y,) is the x guessed from each y, e the probability that it is wrong, and h(e) the
  entropy of (e, 1 - e). Equality if and only if, whatever y is, the guess is wrong with the same
  probability e and X uniform among the n - 1 others.
  Reference: C&T, theorem 2.10.1, with the n - 1 of its corollary.
  """
  hits = jax.nn.one_hot(guess, joint.shape[0], dtype=joint.dtype).T
  error, success = jnp.sum(joint * (1 - hits)), jnp.sum(joint * hits)
  spread = error * math.log(joint.shape[0] - 1)
  return Inequality(conditional_entropy(joint.T), entropy(jnp.stack([error, success])) + spread)


def pinsker(p: Array, q: Array) -> Inequality:
  """½ (Σ |p - q|)² <= KL(p ‖ q), for tables of one shape.

  Equality if and only if p = q; ½ is the best constant, approached as q → p for p = (½, ½).
  Reference: C&T, lemma 11.6.1.
  """
  return Inequality(0.5 * jnp.square(jnp.sum(jnp.abs(p - q))), kl(p, q))


def maximum_entropy(law: Normal | Line, covariance: Array) -> Inequality:
  """H(X) <= ½ log det(2πe covariance), for X of that covariance (d, d), or a smaller one.

  The gap is the divergence from the normal law of the same mean and covariance, whose logarithm is
  a quadratic and hence has the same mean under both. Equality if and only if X is that normal law.
  Reference: C&T, theorem 8.6.5.
  """
  return Inequality(law.entropy(), Normal(jnp.reshape(law.mean, (-1,)), covariance).entropy())


INEQUALITIES = {
  'gibbs': gibbs,
  'jensen': jensen,
  'conditioning': conditioning,
  'data_processing': data_processing,
  'data_processing_divergence': data_processing_divergence,
  'chain_forgets': chain_forgets,
  'chain_merges': chain_merges,
  'posterior_entropy_lower': posterior_entropy_lower,
  'posterior_entropy_upper': posterior_entropy_upper,
  'entropy_power': entropy_power,
  'fano': fano,
  'pinsker': pinsker,
  'maximum_entropy': maximum_entropy,
}


def chain_rule_entropy(joint: Array) -> Identity:
  """H(X_1, …, X_n) = Σ H(X_i | X_1, …, X_{i-1}), for a table with n axes.

  Reference: C&T, theorem 2.5.1.
  """
  return Identity(entropy(joint), jnp.sum(jnp.stack([*map(conditional_entropy, prefixes(joint))])))


def chain_rule_divergence(p: Array, q: Array) -> Identity:
  """KL(p ‖ q) = Σ_i E_p KL(p(x_i | x_{<i}) ‖ q(x_i | x_{<i})), for tables with n axes.

  Reference: C&T, theorem 2.5.3.
  """
  terms = [*map(conditional_divergence, prefixes(p), prefixes(q))]
  return Identity(kl(p, q), jnp.sum(jnp.stack(terms)))


def chain_rule_information(joint: Array) -> Identity:
  """I(X, Y; Z) = I(X; Z) + I(Y; Z | X), for a table (x, y, z).

  Reference: C&T, theorem 2.5.2.
  """
  given_x = conditional_information(jnp.moveaxis(joint, 0, -1))
  pairs = joint.reshape(-1, joint.shape[2])
  return Identity(mutual_information(pairs), mutual_information(joint.sum(1)) + given_x)


def information_by_entropies(joint: Array) -> Identity:
  """I(X; Y) = H(X) - H(X | Y), for a table (x, y); of its transpose it is H(Y) - H(Y | X).

  Reference: C&T, theorem 2.4.1.
  """
  known = conditional_entropy(joint.T)
  return Identity(mutual_information(joint), entropy(joint.sum(1)) - known)


def de_bruijn(law: Normal | Line, t: Array | float) -> Identity:
  """d/dt H(x + √t eps) = ½ J(x + √t eps), J = E‖∇ log p‖², for t > 0.

  Reference: C&T, theorem 17.7.2.
  """
  slope = jax.grad(lambda t: law.diffused(1.0, jnp.sqrt(t)).entropy())(t)
  return Identity(slope, law.fisher(1.0, jnp.sqrt(t)) / 2)


def i_mmse(law: Normal | Line, snr: Array | float) -> Identity:
  """d/dsnr I(x; √snr x + eps) = ½ E‖x - E[x | √snr x + eps]‖², for snr > 0.

  Reference: Guo, Shamai and Verdú 2005, theorem 1.
  """
  return Identity(jax.grad(law.information)(snr), law.mmse(snr) / 2)


IDENTITIES = {
  'chain_rule_entropy': chain_rule_entropy,
  'chain_rule_divergence': chain_rule_divergence,
  'chain_rule_information': chain_rule_information,
  'information_by_entropies': information_by_entropies,
  'de_bruijn': de_bruijn,
  'i_mmse': i_mmse,
}


def prefixes(joint: Array) -> list[Array]:
  """The tables of X_1, of (X_1, X_2), … and of all."""
  return [joint.sum(tuple(range(i, joint.ndim))) for i in range(1, joint.ndim + 1)]


def conditional_divergence(p: Array, q: Array) -> Array:
  """E_p KL(p(y | x) ‖ q(y | x)) of two tables (…, y), where x is all but the last axis."""
  of_x, other = p.sum(-1, keepdims=True), q.sum(-1, keepdims=True)
  return kl(p, q / jnp.where(other > 0, other, 1.0) * of_x)
