// The submodule `socle_native.kernels`: the kernels of a named instruction set on arrays, for tests. Results are flat.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "kernel_calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace socle {
namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

template <class T>
View<T> view(const In<T>& array) {
  return {array.data(), array.size()};
}
template <class T>
View<T> view(const std::optional<In<T>>& array) {
  return array ? view(*array) : View<T>();
}

template <class T>
Out<T> owned(std::vector<T>&& values) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Out<T>(kept->data(), {kept->size()}, owner);
}

std::tuple<Out<int8_t>, Out<int32_t>> call_quantise(const std::string& set, const In<float>& x, int group_inputs) {
  QuantisedRows rows = quantise(kernels_of(set), view(x), group_inputs);
  return {owned(std::move(rows.values)), owned(std::move(rows.tails))};
}

Out<float> call_product(const std::string& set, const std::string& encoding, const In<uint8_t>& stored, int rows,
                        int inputs, int num_rows, const std::optional<In<float>>& dense,
                        const std::optional<In<int8_t>>& values, const std::optional<In<int32_t>>& tails,
                        const std::array<int, 4>& part, const std::optional<In<float>>& start) {
  const Matrix matrix = matrix_of(view(stored), rows, inputs, encoding_named(encoding));
  const ProductInput input = {num_rows, view(dense), view(values), view(tails)};
  return owned(product(kernels_of(set), matrix, input, {part[0], part[1], part[2], part[3]}, view(start)));
}

// The tiles that hold these positions of one head, as attention reads them.
Out<uint8_t> call_store_kv(const std::string& set, const std::string& kv_type, const In<float>& keys,
                           const In<float>& values) {
  expect_that(keys.ndim() == 2 && values.ndim() == 2, "keys and values are [num_positions, head_dim]");
  expect_size(values.size(), keys.size(), "values");
  return owned(store_kv(kernels_of(set), {kv_encoding_named(kv_type), static_cast<int>(keys.shape(1)), view(keys),
                                          view(values)}));
}

Out<float> call_attend(const std::string& set, const std::string& kv_type, int head_dim, const In<float>& keys,
                       const In<float>& values, const In<float>& queries, const In<int32_t>& begins,
                       const In<int32_t>& ends) {
  const CachedHead head = {kv_encoding_named(kv_type), head_dim, view(keys), view(values)};
  return owned(attend(kernels_of(set), head, view(queries), view(begins), view(ends)));
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("quantise", &call_quantise, "instruction_set"_a, "x"_a, "group_inputs"_a);
  m.def("product", &call_product, "instruction_set"_a, "encoding"_a, "stored"_a, "rows"_a, "inputs"_a, nb::kw_only(),
        "num_rows"_a, "dense"_a = nb::none(), "values"_a = nb::none(), "tails"_a = nb::none(),
        "part"_a, "start"_a = nb::none());
  m.def("rms_norm", [](const std::string& set, const In<float>& x, const In<float>& weight, float eps) {
    return owned(rms_norm(kernels_of(set), view(x), view(weight), eps));
  });
  m.def("rotate", [](const std::string& set, const In<float>& head, const In<float>& cos, const In<float>& sin) {
    return owned(rotate(kernels_of(set), view(head), view(cos), view(sin)));
  });
  m.def("add", [](const std::string& set, const In<float>& x, const In<float>& y) {
    return owned(add(kernels_of(set), view(x), view(y)));
  });
  m.def("scale", [](const std::string& set, const In<float>& x, float factor) {
    return owned(scale(kernels_of(set), view(x), factor));
  });
  m.def("gate", [](const std::string& set, const In<float>& gate_values, const In<float>& up) {
    return owned(gate(kernels_of(set), view(gate_values), view(up)));
  });
  m.def("expose", [](const std::string& set, const In<float>& x) { return owned(expose(kernels_of(set), view(x))); });
  m.def("tile_tops",
        [](const std::string& set, const In<float>& x) { return owned(tile_tops(kernels_of(set), view(x))); });
  m.def("store_kv", &call_store_kv, "instruction_set"_a, "kv_type"_a, "keys"_a, "values"_a);
  m.def("attend", &call_attend, "instruction_set"_a, "kv_type"_a, "head_dim"_a, "keys"_a, "values"_a, "queries"_a,
        "begins"_a, "ends"_a);
}

}  // namespace socle
