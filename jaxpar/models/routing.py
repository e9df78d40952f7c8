"""Which experts a token visits, in which of their places, and the ways there and back.

Each row of the batch is a group of its own (Lepikhin et al. 2020), so that no split of the batch
changes who is dropped. The functions below are written for one row; a model maps them over rows.
"""

from dataclasses import dataclass
from math import ceil

import jax
import jax.numpy as jnp

# Shape suffixes: S sequence, E experts, A = the active experts a token visits, T = A S choices, the
# first choices of all tokens before the second ones, Z = E x places, D embed.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Route:
    """Where the tokens of one row go.

    Attributes:
        place: (A, S), expert x places + place of each choice; experts x places where it is dropped.
        weight: (A, S), what each choice counts in the sum over a token's experts.
        choices: (E,), how many choices fell on each expert, dropped ones too.
    """

    place: jax.Array
    weight: jax.Array
    choices: jax.Array


def places_of(tokens: int, *, experts: int, active: int, capacity: float) -> int:
    """Places that an expert keeps for a row of `tokens`.

    Args:
        tokens: tokens in the row.
        experts, active: how many there are, and how many a token visits.
        capacity: places as a multiple of an even share; 0 gives room for every token.

    >>> places_of(16, experts=4, active=2, capacity=1.25)
    10
    """
    # A token visits an expert once, so more places than tokens would stay empty. Less a billionth,
    # since 1.1 * 10 is a little more than 11.
    share = ceil(active * tokens * capacity / experts - 1e-9)
    return min(share, tokens) if capacity else tokens


def route(probability_SE: jax.Array, *, active: int, places: int) -> Route:
    """Send each token to its likeliest `active` experts, as far as these have places.

    First choices are placed before second ones, and each by position (GShard); who finds no place
    is dropped. Weights are the probabilities, shared out over the chosen where these are several
    (Jiang et al. 2024); a single one keeps its own, or the router would learn nothing (Fedus et
    al. 2021).
    """
    tokens, experts = probability_SE.shape
    hit_ASE = _likeliest(probability_SE, active)
    weight_AS = jnp.sum(jnp.where(hit_ASE, probability_SE[None], 0), axis=-1)
    if active > 1:
        weight_AS = weight_AS / jnp.sum(weight_AS, axis=0, keepdims=True)
    hit_TE = hit_ASE.reshape(active * tokens, experts).astype(jnp.int32)
    before_TE = jnp.cumsum(hit_TE, axis=0) - hit_TE  # choices of the same expert that come first
    place_TE = places * jnp.arange(experts, dtype=jnp.int32)[None] + before_TE
    fits_T = jnp.sum(hit_TE * before_TE, axis=1) < places
    place_T = jnp.where(fits_T, jnp.sum(hit_TE * place_TE, axis=1), experts * places)
    return Route(place_T.reshape(active, tokens), weight_AS, jnp.sum(hit_TE, axis=0))


def _likeliest(probability_SE: jax.Array, active: int) -> jax.Array:
    """Whether each expert is a token's first, second, ... choice: (active, S, E) booleans.

    One maximum after another, since XLA for CPUs gathers the whole batch for a top_k.
    """
    number_SE = jax.lax.broadcasted_iota(jnp.int32, probability_SE.shape, 1)
    left_SE = jax.lax.stop_gradient(probability_SE)
    hits = []
    for _ in range(active):
        hits.append(number_SE == jax.lax.argmax(left_SE, 1, jnp.int32)[:, None])
        left_SE = jnp.where(hits[-1], -1, left_SE)
    return jnp.stack(hits)


def dispatched(x_SD: jax.Array, place_AS: jax.Array, size: int) -> jax.Array:
    """The tokens in their places, (S, D) -> (`size`, D); zero where a place is empty."""
    token_AS = jax.lax.broadcasted_iota(jnp.int32, place_AS.shape, 1)
    # Indices are scattered and tokens gathered: D times less to write at computed places.
    token_Z = jnp.full((size,), x_SD.shape[0], jnp.int32).at[place_AS].set(token_AS, mode="drop")
    return x_SD.at[token_Z].get(mode="fill", fill_value=0)


def combined(y_ZD: jax.Array, route: Route) -> jax.Array:
    """The weighted sum of what a token's experts made of it, (Z, D) -> (S, D); of dropped, zero."""
    y_ASD = y_ZD.at[route.place].get(mode="fill", fill_value=0)
    return jnp.einsum("as,asd->sd", route.weight.astype(y_ZD.dtype), y_ASD)


def statistics(probability_SE: jax.Array, route: Route, places: int) -> dict[str, jax.Array]:
    """How evenly one row used the experts, three scalars.

    Returns:
        balance: experts x sum of (share of choices x mean probability), the auxiliary loss of Fedus
            et al. 2021; 1 when both are even, up to the number of experts when one gets all.
        busiest: choices that fell on the busiest expert, as a multiple of an even share.
        dropped: share of the choices that found no place.
    """
    experts, count = probability_SE.shape[1], route.place.size
    dtype = probability_SE.dtype
    share_E = route.choices.astype(dtype) / count
    return {
        "balance": experts * jnp.sum(share_E * jnp.mean(probability_SE, axis=0)),
        "busiest": experts * jnp.max(share_E),
        "dropped": jnp.sum(jnp.maximum(route.choices - places, 0)).astype(dtype) / count,
    }
