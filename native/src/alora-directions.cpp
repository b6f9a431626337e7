#include "alora-directions.h"

#include "alora-error.h"
#include "alora.h"

// Vectors come and go without a reserve as long as their directions fit.
static constexpr int64_t STEP = 8;

const alora_directions::stack * alora_directions::find(const alora_point & point) const {
    const auto at = now.stacks.find(point);
    return at == now.stacks.end() ? nullptr : &at->second;
}

alora_directions::placed alora_directions::allocate(
        const std::map<alora_point, columns> & wanted, int64_t n_embd) const {
    placed                                               made;
    std::map<ggml_backend_buffer_type_t, ggml_context *> by_buft;
    for (const auto & [point, of] : wanted) {
        ggml_context *& ctx = by_buft[memory(point.layer)];
        if (!ctx) {
            // ggml_init() ends the process where it gets no memory
            const size_t size = 2 * wanted.size() * ggml_tensor_overhead();
            made.headers.emplace_back(new char[size]);
            made.ctxs.emplace_back();
            ctx = ggml_init({ size, made.headers.back().get(), /*.no_alloc =*/true });
            made.ctxs.back().reset(ctx);
        }
        const int64_t capacity = GGML_PAD((int64_t) of.size(), STEP);
        stack &       into     = made.stacks[point];
        into.rows              = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd, capacity);
        into.turned            = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, capacity, n_embd);
        ggml_set_name(into.rows, "alora_directions");
    }
    for (const auto & [buft, ctx] : by_buft) {
        ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
        if (!buf) {
            throw alora_error(
                    ALORA_ERR_MEMORY, std::string("no memory in ") + ggml_backend_buft_name(buft) +
                                              " for the vectors' directions");
        }
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        made.bufs.emplace_back(buf);
    }
    return made;
}

bool alora_directions::place(std::map<alora_point, columns> wanted, int64_t n_embd) {
    for (auto at = wanted.begin(); at != wanted.end();) {
        at = on_device(at->first) ? std::next(at) : wanted.erase(at);
    }
    bool fits = true;
    for (const auto & [point, of] : wanted) {
        const stack * have = find(point);
        fits               = fits && have && (int64_t) of.size() <= have->rows->ne[1];
    }
    placed   fresh = fits ? placed() : allocate(wanted, n_embd);
    placed & into  = fits ? now : fresh;
    for (auto & [point, of] : wanted) {
        stack &            stack    = into.stacks.at(point);
        const int64_t      capacity = stack.rows->ne[1];
        std::vector<float> rows(capacity * n_embd), turned(capacity * n_embd);
        for (size_t k = 0; k < of.size(); ++k) {
            for (int64_t i = 0; i < n_embd; ++i) {
                rows[k * n_embd + i] = turned[i * capacity + k] = of[k].values[i];
            }
        }
        ggml_backend_tensor_set(stack.rows, rows.data(), 0, ggml_nbytes(stack.rows));
        ggml_backend_tensor_set(stack.turned, turned.data(), 0, ggml_nbytes(stack.turned));
        stack.of = std::move(of);
    }
    if (!fits) {
        before = std::move(now);
        now    = std::move(fresh);
        grown  = true;
    }
    return !fits;
}

void alora_directions::keep() {
    before = {};
    grown  = false;
}

void alora_directions::undo() {
    if (grown) {
        now = std::move(before);
        keep();
    }
}

void alora_directions::forget(const alora_vector * vector) {
    for (placed * of : { &now, &before }) {
        for (auto & [point, stack] : of->stacks) {
            for (column & c : stack.of) {
                if (c.vector == vector) {
                    c = {};
                }
            }
        }
    }
}

size_t alora_directions::n_bytes() const {
    size_t n = 0;
    for (const auto & buf : now.bufs) {
        n += ggml_backend_buffer_get_size(buf.get());
    }
    return n;
}
