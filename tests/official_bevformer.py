"""The published test-time loop in plain loops over rows, cameras, heads and points, for comparison.

Written from the description of the official code, with none of the package's own functions: CAN-bus vectors
that are made relative in the loop, a past that is turned to the nearest cell and then looked at shifted,
queries that look into all cameras, a decoder that refines. Everything is float64 and one row at a time.
"""

import math

import torch
import torch.nn.functional as F

EPS = 1e-5


class OfficialLoop:
    """The loop around the network: what it remembers is one frame, and where and which way the car was.

    Args:
        weights: Official name -> tensor.
        heads, hw, range_m, center: Sizes of the network; `center` is what the past turns about.
        hw_px: Size of the pictures that the matrices speak of.
    """

    def __init__(self, weights, *, heads, hw, range_m, center, hw_px):
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.heads, self.hw, self.range_m, self.center, self.hw_px = heads, hw, range_m, center, hw_px
        self.scene, self.bev = None, None
        self.position, self.angle = torch.zeros(3).double(), torch.zeros(()).double()

    def frame(self, scene, can_bus, maps, lidar2img):
        """The map [cells, c], and logits and raw boxes of every decoder layer."""
        if scene != self.scene:
            self.bev = None
        self.scene = scene
        relative = can_bus.clone()
        if self.bev is None:
            relative[:3], relative[-1] = 0, 0
        else:
            relative[:3] -= self.position
            relative[-1] -= self.angle
        self.position, self.angle = can_bus[:3].clone(), can_bus[-1].clone()
        self.bev = self._bev(relative, maps, lidar2img)
        return self.bev, *self._decode(self.bev)

    # Names.

    def _get(self, name):
        return self.weights[f"pts_bbox_head.{name}"]

    def _linear(self, x, name):
        return x @ self._get(f"{name}.weight").T + self._get(f"{name}.bias")

    def _norm(self, x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
        return x * self._get(f"{name}.weight") + self._get(f"{name}.bias")

    def _count(self, part):
        prefix = f"pts_bbox_head.transformer.{part}.layers."
        return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in self.weights if prefix in name)

    # The map.

    def _bev(self, can_bus, maps, lidar2img):
        rows, columns = self.hw
        t = "transformer"
        query = self._get("bev_embedding.weight").clone()
        signal = self._linear(can_bus, f"{t}.can_bus_mlp.0").relu()
        signal = self._linear(signal, f"{t}.can_bus_mlp.2").relu()
        query = query + self._norm(signal, f"{t}.can_bus_mlp.norm")
        row, column = (self._get(f"positional_encoding.{way}_embed.weight") for way in ("row", "col"))
        position = torch.stack([torch.cat([column[j], row[i]]) for i in range(rows) for j in range(columns)])
        past = None if self.bev is None else self._turned(self.bev, float(can_bus[-1]))
        width_m = self.range_m[3] - self.range_m[0]
        height_m = self.range_m[4] - self.range_m[1]
        way = math.hypot(can_bus[0], can_bus[1])
        side = float(can_bus[-2]) - math.atan2(can_bus[1], can_bus[0])
        shift = numbers([way * math.sin(side) / width_m, way * math.cos(side) / height_m])
        here = numbers([[(j + 0.5) / columns, (i + 0.5) / rows] for i in range(rows) for j in range(columns)])
        entered = query
        values = [
            [
                (level.flatten(1).T + self._get(f"{t}.cams_embeds")[n] + self._get(f"{t}.level_embeds")[at])
                for at, level in enumerate(maps_of_camera)
            ]
            for n, maps_of_camera in enumerate(maps)
        ]
        sizes = [tuple(level.shape[1:]) for level in maps[0]]
        for number in range(self._count("encoder")):
            name = f"{t}.encoder.layers.{number}"
            query = query + self._look_back(
                query, position, past, entered, here, shift, f"{name}.attentions.0"
            )
            query = self._norm(query, f"{name}.norms.0")
            query = query + self._look_out(query, values, sizes, lidar2img, f"{name}.attentions.1")
            query = self._norm(query, f"{name}.norms.1")
            query = self._norm(query + self._feed(query, name), f"{name}.norms.2")
        return query

    def _feed(self, x, name):
        return self._linear(self._linear(x, f"{name}.ffns.0.layers.0.0").relu(), f"{name}.ffns.0.layers.1")

    def _turned(self, bev, degrees):
        """Every cell takes the nearest one: the picture turns against the clock, with rows going down."""
        rows, columns = self.hw
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turned = torch.zeros_like(bev)
        for i in range(rows):
            for j in range(columns):
                x, y = j + 0.5 - self.center[0], i + 0.5 - self.center[1]
                column = round(cos * x - sin * y + self.center[0] - 0.5)
                row = round(sin * x + cos * y + self.center[1] - 0.5)
                if 0 <= row < rows and 0 <= column < columns:
                    turned[i * columns + j] = bev[row * columns + column]
        return turned

    def _look_back(self, query, position, past, entered, here, shift, name):
        if past is None:
            maps, starts = (query, query), (here, here)
        else:
            maps, starts = (past, entered), (here + shift, here)
        asking = torch.cat([maps[0], query + position], -1)
        cells = len(query)
        offsets = self._linear(asking, f"{name}.sampling_offsets").view(cells, self.heads, 2, -1, 2)
        weights = self._linear(asking, f"{name}.attention_weights").view(cells, self.heads, 2, -1)
        found = []
        for branch in range(2):
            value = self._linear(maps[branch], f"{name}.value_proj")
            found.append(
                self._mixed(
                    [value],
                    [self.hw],
                    starts[branch][:, None, None],
                    offsets[:, :, branch, None],
                    weights[:, :, branch, None],
                )
            )
        return self._linear((found[0] + found[1]) / 2, f"{name}.output_proj")

    def _look_out(self, query, values, sizes, lidar2img, name):
        deep, levels = name + ".deformable_attention", len(sizes)
        total, count = torch.zeros_like(query), torch.zeros(len(query), 1).double()
        offsets = self._linear(query, f"{deep}.sampling_offsets").view(len(query), self.heads, levels, -1, 2)
        weights = self._linear(query, f"{deep}.attention_weights").view(len(query), self.heads, levels, -1)
        for camera, matrix in enumerate(lidar2img):
            cells, starts = [], []
            for cell in range(len(query)):
                places, hits = self._pillar(cell, matrix)
                if any(hits):
                    cells.append(cell)
                    # Point p starts at height p mod 4.
                    starts.append([places[p % 4] for p in range(offsets.shape[3])])
            if cells:
                value = [self._linear(level, f"{deep}.value_proj") for level in values[camera]]
                found = self._mixed(value, sizes, numbers(starts)[:, None], offsets[cells], weights[cells])
                total[cells] += found
                count[cells] += 1
        return self._linear(total / count.clamp_min(1), f"{name}.output_proj")

    def _pillar(self, cell, matrix):
        """Where a cell's four heights are in a picture, in parts of it, and which of them can be seen."""
        (row, column), (rows, columns) = divmod(cell, self.hw[1]), self.hw
        x_min, y_min, z_min, x_max, y_max, z_max = self.range_m
        x = x_min + (column + 0.5) / columns * (x_max - x_min)
        y = y_min + (row + 0.5) / rows * (y_max - y_min)
        places, hits = [], []
        for k in range(4):
            z = z_min + 0.5 + k * (z_max - z_min - 1) / 3
            u, v, depth = (matrix @ numbers([x, y, z, 1.0])).tolist()
            u, v = u / max(depth, EPS) / self.hw_px[1], v / max(depth, EPS) / self.hw_px[0]
            places.append([u, v])
            hits.append(depth > EPS and 0 < u < 1 and 0 < v < 1)
        return places, hits

    def _mixed(self, values, sizes, start, offsets, weights):
        """Heads' weighted means of what their points find: offsets [q, m, l, p, 2], weights [q, m, l, p]."""
        queries, heads, levels, points, _ = offsets.shape
        shares = weights.flatten(2).softmax(-1).view(queries, heads, levels, points)
        parts = []
        for head in range(heads):
            mixed = 0
            for level, (height, width) in enumerate(sizes):
                own = values[level].view(height, width, heads, -1)[:, :, head]
                place = start + offsets[:, :, level] / numbers([width, height])
                place = place[:, head] if place.shape[1] > 1 else place[:, 0]
                mixed = mixed + (read(own, place) * shares[:, head, level, :, None]).sum(1)
            parts.append(mixed)
        return torch.cat(parts, -1)

    # Boxes.

    def _decode(self, bev):
        position, content = self._get("query_embedding.weight").chunk(2, -1)
        reference = self._linear(position, "transformer.reference_points").sigmoid()
        low, high = numbers(self.range_m[:3]), numbers(self.range_m[3:])
        logits, boxes = [], []
        for number in range(self._count("decoder")):
            name = f"transformer.decoder.layers.{number}"
            content = self._norm(content + self._talk(content, position, name), f"{name}.norms.0")
            asking, cross = content + position, f"{name}.attentions.1"
            shape = (len(content), self.heads, 1, -1)
            looked = self._mixed(
                [self._linear(bev, f"{cross}.value_proj")],
                [self.hw],
                reference[:, None, None, :2],
                self._linear(asking, f"{cross}.sampling_offsets").view(*shape, 2),
                self._linear(asking, f"{cross}.attention_weights").view(shape),
            )
            content = self._norm(content + self._linear(looked, f"{cross}.output_proj"), f"{name}.norms.1")
            content = self._norm(content + self._feed(content, name), f"{name}.norms.2")
            raw = content
            for at in (0, 2):
                raw = self._linear(raw, f"reg_branches.{number}.{at}").relu()
            raw = self._linear(raw, f"reg_branches.{number}.4")
            named = content
            for at in (0, 3):
                named = self._linear(named, f"cls_branches.{number}.{at}")
                named = self._norm(named, f"cls_branches.{number}.{at + 1}").relu()
            logits.append(self._linear(named, f"cls_branches.{number}.6"))
            old = reference.clamp(0, 1)
            old = (old.clamp_min(EPS) / (1 - old).clamp_min(EPS)).log()
            reference = (raw[:, [0, 1, 4]] + old).sigmoid()
            box = raw.clone()
            box[:, [0, 1, 4]] = low + reference * (high - low)
            boxes.append(box)
        return torch.stack(logits), torch.stack(boxes)

    def _talk(self, content, position, name):
        weight, bias = (self._get(f"{name}.attentions.0.attn.in_proj_{kind}") for kind in ("weight", "bias"))
        asking, width = content + position, content.shape[1]
        q, k, v = (
            F.linear(x, weight[n * width : (n + 1) * width], bias[n * width : (n + 1) * width])
            for n, x in enumerate((asking, asking, content))
        )
        each, parts = width // self.heads, []
        for head in range(self.heads):
            own = slice(head * each, (head + 1) * each)
            parts.append((q[:, own] @ k[:, own].T / each**0.5).softmax(-1) @ v[:, own])
        return self._linear(torch.cat(parts, -1), f"{name}.attentions.0.attn.out_proj")


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def read(cells, places):
    """Bilinear values of a map [h, w, c] at places [q, p, 2] (x, y) in 0..1, zero beyond its edge."""
    height, width, _ = cells.shape
    x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    found = 0
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            value = cells[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            found = found + (weight * inside)[..., None] * value
    return found
