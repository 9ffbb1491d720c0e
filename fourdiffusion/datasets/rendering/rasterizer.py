"""Render a posed glTF asset with off-screen OpenGL 3.3 (EGL): straight RGBA, ray distance, normals, motion vectors.

Each pixel averages ``supersampling`` x ``supersampling`` samples in linear color. The number is odd, so one sample is
at the pixel's center: distance, normal and motion are taken from it, never averaged over an edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourdiffusion.datasets.rendering.gltf import Asset, AssetError, Material, Primitive

SRGB8_ALPHA8 = 0x8C43
NEAREST, LINEAR, LINEAR_MIPMAP_NEAREST = 9728, 9729, 9985
MAX_LIGHTS = 8
NEAR, FAR = 0.01, 100.0  # scene units

VERTEX_SHADER = """
uniform mat4 view_projection;
in vec3 in_position;
in vec3 in_normal;
in vec2 in_uv;
in vec4 in_color;
out vec3 position;
out vec3 normal;
out vec2 uv;
out vec4 color;
#ifdef LAYERS
in vec3 in_next;
out vec3 place;
out vec3 next_place;
#endif
void main() {
    gl_Position = view_projection * vec4(in_position, 1.0);
    position = in_position;
    normal = in_normal;
    uv = in_uv;
    color = in_color;
#ifdef LAYERS
    place = gl_Position.xyw;
    next_place = (view_projection * vec4(in_next, 1.0)).xyw;
#endif
}
"""

FRAGMENT_SHADER = """
const int MAX_LIGHTS = 8;
uniform sampler2D image;
uniform bool textured;
uniform bool flat_normals;
uniform bool unlit;
uniform vec4 base_color;
uniform vec3 emissive;
uniform float metallic;
uniform int alpha_mode;       // 0 opaque, 1 mask, 2 blend
uniform float alpha_cutoff;
uniform int supersampling;
uniform vec2 half_size;       // pixels
uniform vec3 eye;
uniform float ambient;
uniform int num_lights;
uniform vec4 lights[MAX_LIGHTS];   // direction to the light, wrap
uniform float strengths[MAX_LIGHTS];
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 color;
layout(location = 0) out vec4 out_color;
#ifdef LAYERS
in vec3 place;
in vec3 next_place;
layout(location = 1) out vec4 out_surface;  // normal, distance along the ray
layout(location = 2) out vec4 out_motion;
#endif
void main() {
    vec4 base = base_color * color;
    if (textured) base *= texture(image, uv);
    if (alpha_mode == 1 && base.a < alpha_cutoff) discard;
    if (alpha_mode == 2) {  // ordered dither over the samples of a pixel: needs no sorting of triangles
        ivec2 cell = ivec2(gl_FragCoord.xy) % supersampling;
        int index = (cell.y * supersampling + cell.x) * 4 % (supersampling * supersampling);
        if (base.a < (float(index) + 0.5) / float(supersampling * supersampling)) discard;
    }
    vec3 n = flat_normals ? cross(dFdx(position), dFdy(position)) : normal;
    n = normalize(n);
    if (dot(n, eye - position) < 0.0) n = -n;
    vec3 light = vec3(ambient);
    for (int k = 0; k < num_lights; k++) {
        float wrap = lights[k].w;
        light += strengths[k] * max((dot(n, lights[k].xyz) + wrap) / (1.0 + wrap), 0.0);
    }
    vec3 shaded = base.rgb * (unlit ? vec3(1.0) : light * (1.0 - METAL_LOSS * metallic)) + emissive;
    out_color = vec4(min(shaded, vec3(1.0)), 1.0);
#ifdef LAYERS
    out_surface = vec4(n, length(position - eye));
    out_motion = vec4((next_place.xy / next_place.z - place.xy / place.z) * vec2(half_size.x, -half_size.y), 0.0, 1.0);
#endif
}
""".replace("METAL_LOSS", "0.5")

QUAD_SHADER = """
in vec2 in_position;
void main() { gl_Position = vec4(in_position, 0.0, 1.0); }
"""

RESOLVE_SHADER = """
uniform sampler2D samples;
uniform int supersampling;
layout(location = 0) out vec4 out_color;
#ifdef LAYERS
uniform sampler2D surface;
uniform sampler2D motion;
layout(location = 1) out vec4 out_surface;
layout(location = 2) out vec4 out_motion;
#endif
void main() {
    ivec2 corner = ivec2(gl_FragCoord.xy) * supersampling;
    vec4 sum = vec4(0.0);
    for (int y = 0; y < supersampling; y++)
        for (int x = 0; x < supersampling; x++)
            sum += texelFetch(samples, corner + ivec2(x, y), 0);
    vec3 linear = sum.a > 0.0 ? sum.rgb / sum.a : vec3(0.0);
    vec3 high = 1.055 * pow(linear, vec3(1.0 / 2.4)) - 0.055;
    out_color = vec4(mix(high, 12.92 * linear, lessThanEqual(linear, vec3(0.0031308))),
                     sum.a / float(supersampling * supersampling));
#ifdef LAYERS
    ivec2 center = corner + supersampling / 2;
    out_surface = texelFetch(surface, center, 0);
    out_motion = texelFetch(motion, center, 0);
#endif
}
"""


@dataclass
class Light:
    """A distant light: a white surface that faces it has this radiance."""

    direction: tuple[float, float, float]  # unit vector from the scene to the light
    strength: float
    angle_deg: float  # angular diameter; larger is softer


@dataclass
class Picture:
    """One rendered image; row 0 at the top. The layers are of the surface at a pixel's center."""

    rgba: np.ndarray  # uint8 [H, W, 4], straight alpha, sRGB
    distance: np.ndarray | None = None  # float32 [H, W], along the pixel's unit ray; inf where no surface
    normal: np.ndarray | None = None  # float32 [H, W, 3], unit, world axes; 0 where no surface
    motion: np.ndarray | None = None  # float32 [H, W, 2], pixels right and down to the next frame; 0 where no surface


class Rasterizer:
    """Renderer of one asset at one image size. Call ``set_frame``, then ``render`` once for each camera.

    Without ``layers`` it renders only colors, in half the time.
    """

    def __init__(self, asset: Asset, width: int, height: int, supersampling: int, layers: bool) -> None:
        if supersampling % 2 == 0:
            raise ValueError(f"supersampling is {supersampling}; give an odd number")
        self.context = create_context()
        self.width, self.height, self.supersampling = width, height, supersampling
        self.asset = asset
        self.layers, self.cull_backfaces = layers, False
        fine = (width * supersampling, height * supersampling)
        extra = ("f4", "f4") if layers else ()
        self.fine, self.fine_textures = self._target(fine, "f2", *extra)
        self.coarse, _ = self._target((width, height), "f1", *extra)
        self.program = self._program(VERTEX_SHADER, FRAGMENT_SHADER)
        self.resolver = self._program(QUAD_SHADER, RESOLVE_SHADER)
        corners = self.context.buffer(np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32).tobytes())
        self.quad = self.context.vertex_array(self.resolver, [(corners, "2f", "in_position")])
        self.textures: dict[int, Any] = {}
        self.drawables = [self._drawable(primitive) for primitive in asset.primitives if len(primitive.indices)]

    def _target(self, size: tuple[int, int], *types: str) -> tuple[Any, list[Any]]:
        textures = [self.context.texture(size, 4, dtype=kind) for kind in types]
        for texture in textures:
            texture.filter = (NEAREST, NEAREST)
        return self.context.framebuffer(textures, self.context.depth_renderbuffer(size)), textures

    def _program(self, vertex: str, fragment: str) -> Any:
        version = "#version 330\n" + ("#define LAYERS\n" if self.layers else "")
        return self.context.program(vertex_shader=version + vertex, fragment_shader=version + fragment)

    def _drawable(self, primitive: Primitive) -> tuple[Primitive, Any, Any, Any]:
        """Upload the static data; return the primitive, its dynamic buffer, vertex array and texture."""
        count = len(primitive.positions)
        uv = primitive.uv if primitive.uv is not None else np.zeros((count, 2), np.float32)
        colors = primitive.colors if primitive.colors is not None else np.ones((count, 4), np.float32)
        fixed = self.context.buffer(np.concatenate([uv, colors], axis=1).astype("f4").tobytes())
        moving = self.context.buffer(reserve=count * 9 * 4, dynamic=True)
        indices = self.context.buffer(primitive.indices.astype("u4").tobytes())
        names: tuple[str, ...] = ("3f 3f 3f", "in_position", "in_next", "in_normal")
        if not self.layers:
            names = ("3f 12x 3f", "in_position", "in_normal")
        content = [(moving, *names), (fixed, "2f 4f", "in_uv", "in_color")]
        array = self.context.vertex_array(self.program, content, indices, index_element_size=4)
        return primitive, moving, array, self._texture(primitive.material)

    def _texture(self, material: Material) -> Any:
        source = material.texture
        if source is None:
            return None
        if id(source) not in self.textures:
            height, width = source.pixels.shape[:2]
            texture = self.context.texture((width, height), 4, source.pixels.tobytes(), internal_format=SRGB8_ALPHA8)
            if source.nearest:
                texture.filter = (NEAREST, NEAREST)
            else:
                texture.build_mipmaps()
                texture.filter = (LINEAR_MIPMAP_NEAREST, LINEAR)
            texture.repeat_x, texture.repeat_y = not source.clamp[0], not source.clamp[1]
            self.textures[id(source)] = texture
        return self.textures[id(source)]

    def set_lights(self, lights: list[Light], ambient: float) -> None:
        """Place the lights, fixed in the world. Ambient light is equal on every surface."""
        if len(lights) > MAX_LIGHTS:
            raise ValueError(f"{len(lights)} lights; at most {MAX_LIGHTS}")
        lights_array, strengths = np.zeros((MAX_LIGHTS, 4), np.float32), np.zeros(MAX_LIGHTS, np.float32)
        for k, light in enumerate(lights):
            lights_array[k] = [*light.direction, math.sin(math.radians(light.angle_deg) / 2)]
            strengths[k] = light.strength
        self.program["lights"].write(lights_array.tobytes())
        self.program["strengths"].write(strengths.tobytes())
        self.program["num_lights"].value = len(lights)
        self.program["ambient"].value = ambient

    def set_frame(
        self,
        frame: list[tuple[np.ndarray, np.ndarray | None]],
        following: list[tuple[np.ndarray, np.ndarray | None]],
        world: np.ndarray,
    ) -> None:
        """Set the poses (``gltf.pose``) of this frame and the next one; ``world`` [4, 4] maps asset to scene."""
        drawn = (k for k, primitive in enumerate(self.asset.primitives) if len(primitive.indices))
        turn = world[:3, :3] / np.linalg.norm(world[:3, 0])
        for k, (_, moving, _, _) in zip(drawn, self.drawables, strict=True):
            positions, normals = frame[k]
            data = np.zeros((len(positions), 9), np.float32)
            data[:, :3] = positions @ world[:3, :3].T + world[:3, 3]
            data[:, 3:6] = following[k][0] @ world[:3, :3].T + world[:3, 3]
            if normals is not None:
                data[:, 6:] = normals @ turn.T
            moving.write(data.tobytes())

    def render(self, c2w: np.ndarray, fovy_deg: float) -> Picture:
        """Render the frame from a camera [4, 4] (camera-to-world, OpenGL axes)."""
        gl = self.context
        projection = perspective(fovy_deg, self.width / self.height)
        self.program["view_projection"].write((projection @ np.linalg.inv(c2w)).T.astype("f4").tobytes())
        self.program["eye"].value = tuple(float(x) for x in c2w[:3, 3])
        if self.layers:
            self.program["half_size"].value = (self.width / 2, self.height / 2)
        self.program["supersampling"].value = self.supersampling
        self.fine.use()
        self.fine.clear()
        gl.enable(gl.DEPTH_TEST)
        for primitive, _, array, texture in self.drawables:
            self._use(primitive, texture)
            array.render()
        gl.disable(gl.DEPTH_TEST | gl.CULL_FACE)
        self.coarse.use()
        for unit, name in enumerate(("samples", "surface", "motion")[: len(self.fine_textures)]):
            self.fine_textures[unit].use(unit)
            self.resolver[name].value = unit
        self.resolver["supersampling"].value = self.supersampling
        self.quad.render(gl.TRIANGLE_STRIP)
        rgba = self._read(0, "f1", np.uint8)
        if not self.layers:
            return Picture(rgba)
        surface, motion = self._read(1, "f4", np.float32), self._read(2, "f4", np.float32)
        distance = np.where(surface[..., 3] > 0, surface[..., 3], np.inf).astype(np.float32)
        return Picture(rgba, distance, surface[..., :3], motion[..., :2])

    def _read(self, attachment: int, kind: str, dtype: type) -> np.ndarray:
        data: np.ndarray = np.frombuffer(self.coarse.read(components=4, attachment=attachment, dtype=kind), dtype)
        return np.ascontiguousarray(data.reshape(self.height, self.width, 4)[::-1])

    def _use(self, primitive: Primitive, texture: Any) -> None:
        material, program, gl = primitive.material, self.program, self.context
        if self.cull_backfaces and not material.double_sided:
            gl.enable(gl.CULL_FACE)
        else:
            gl.disable(gl.CULL_FACE)
        program["base_color"].value = material.color
        program["emissive"].value = material.emissive
        program["metallic"].value = material.metallic
        program["alpha_mode"].value = {"OPAQUE": 0, "MASK": 1, "BLEND": 2}.get(material.alpha_mode, 0)
        program["alpha_cutoff"].value = material.alpha_cutoff
        program["flat_normals"].value = primitive.normals is None
        program["unlit"].value = material.unlit
        program["textured"].value = texture is not None
        if texture is not None:
            texture.use(7)
        program["image"].value = 7


def create_context() -> Any:
    """Return an off-screen OpenGL 3.3 context; AssetError with reason `engine` if there is none."""
    try:
        import moderngl
    except ImportError as error:
        raise AssetError("engine", "moderngl is not installed: pip install 'fourdiffusion[render]'") from error
    try:
        settings: dict[str, Any] = {"standalone": True, "backend": "egl", "require": 330}
        return moderngl.create_context(**settings)
    except Exception as error:  # moderngl raises plain Exception
        detail = f"no off-screen OpenGL 3.3 through EGL ({error}); on Debian: apt install libegl1 libgl1-mesa-dri"
        raise AssetError("engine", detail) from error


def perspective(fovy_deg: float, aspect: float) -> np.ndarray:
    """Return the OpenGL projection matrix [4, 4]."""
    f = 1 / math.tan(math.radians(fovy_deg) / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[1, 1] = f / aspect, f
    matrix[2, 2], matrix[2, 3] = (FAR + NEAR) / (NEAR - FAR), 2 * FAR * NEAR / (NEAR - FAR)
    matrix[3, 2] = -1
    return matrix
