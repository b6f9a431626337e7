// Slot lookup: which activation a position falls under.
#include "alora-slots.h"
#include "check.h"

#include <map>
#include <random>

static void test_a_position_before_the_first_activation_is_the_base() {
    alora_activations activations;
    CHECK(activations.empty());
    CHECK(activations.at(0, 0).slot == 0);

    activations.set(2, 10, { 3, 0.5f });
    CHECK(!activations.empty());
    CHECK(activations.at(2, 9).slot == 0);
    CHECK(activations.at(2, 10) == (alora_choice{ 3, 0.5f }));
    CHECK(activations.at(2, 1000000) == (alora_choice{ 3, 0.5f }));
    CHECK(activations.at(1, 10).slot == 0);
    CHECK(activations.at(200, 10).slot == 0);
    CHECK(activations.at(-1, 10).slot == 0);
}

static void test_slot_0_ends_an_activation() {
    alora_activations activations;
    activations.set(0, 5, { 1, 1.0f });
    activations.set(0, 8, {});
    CHECK(activations.at(0, 4).slot == 0);
    CHECK(activations.at(0, 7).slot == 1);
    CHECK(activations.at(0, 8).slot == 0);
}

static void test_an_earlier_activation_replaces_later_ones() {
    alora_activations activations;
    activations.set(0, 5, { 1, 1.0f });
    activations.set(0, 9, { 2, 1.0f });
    activations.set(0, 9, { 3, 1.0f });
    CHECK(activations.at(0, 8).slot == 1);
    CHECK(activations.at(0, 9).slot == 3);
    CHECK(!activations.uses(2));

    activations.set(0, 2, { 4, 1.0f });
    CHECK(activations.at(0, 9).slot == 4);
    CHECK(!activations.uses(1) && !activations.uses(3) && activations.uses(4));
}

static void test_clearing() {
    alora_activations activations;
    activations.set(0, 0, { 1, 1.0f });
    activations.set(3, 0, { 2, 1.0f });
    activations.clear(0);
    CHECK(!activations.uses(1) && activations.uses(2));
    activations.clear(7);  // a sequence that never had one
    activations.clear(-1);
    CHECK(activations.empty());
    activations.set(0, 4, {});  // the base on the base is no activation
    CHECK(activations.empty());
}

// against a table with an entry for every position
static void test_random_histories() {
    std::mt19937                               rng(1);
    alora_activations                          activations;
    std::map<int, std::map<int, alora_choice>> table;
    for (int step = 0; step < 2000; ++step) {
        const int seq = (int) (rng() % 4);
        if (rng() % 10 == 0) {
            activations.clear(seq);
            table[seq].clear();
        } else {
            const int  first  = (int) (rng() % 20);
            const auto choice = alora_choice{ (int32_t) (rng() % 3), 1.0f };
            activations.set(seq, first, choice);
            for (int pos = first; pos < 25; ++pos) {
                table[seq][pos] = choice;
            }
        }
        bool any = false;
        for (int s = 0; s < 4; ++s) {
            for (int pos = 0; pos < 25; ++pos) {
                CHECK(activations.at(s, pos) == table[s][pos]);
                any |= table[s][pos].slot != 0;
            }
        }
        CHECK(activations.empty() == !any);
    }
}

int main() {
    test_a_position_before_the_first_activation_is_the_base();
    test_slot_0_ends_an_activation();
    test_an_earlier_activation_replaces_later_ones();
    test_clearing();
    test_random_histories();
    return 0;
}
